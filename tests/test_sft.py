"Fine-tuning: what it sees, what it moves."
import numpy as np, pytest, torch
from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data import load_dataset
from gti_nb.sft.batches import example_batches
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.stage import SFTConfig, WindowBatches, finetune, sft_windows
from gti_nb.sft.tasks import TaskSettings, make_tasks
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vocab import SidModel

SIDS = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))

@pytest.fixture(scope="module")
def split(): return load_dataset("toy").leave_one_out()


def test_held_out_items_of_a_user_never_train(split):
    "Every window is a run of consecutive training items of one user."
    runs = {tuple(s[a:b]) for s in split.train for a in range(len(s)) for b in range(a + 1, len(s) + 1)}
    for batch in sft_windows(split, SFTConfig(steps=30, batch_size=4, window=5)):
        assert all(len(w) <= 5 and tuple(w) in runs for w in batch)


def test_an_epoch_shows_every_item_once(split):
    from gti_nb.sft.stage import _epoch
    for window in (1, 3, 100):
        shown = np.sort(np.concatenate(_epoch(split.train, window, np.random.default_rng(0))))
        assert np.array_equal(shown, np.sort(np.concatenate(split.train)))


def test_same_seed_same_data_whatever_the_weights(split):
    a, b = (sft_windows(split, SFTConfig(steps=9, seed=s)) for s in (3, 3))
    assert all(np.array_equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))
    c = sft_windows(split, SFTConfig(steps=9, seed=4))
    assert not all(len(p) == len(q) and all(np.array_equal(x, y) for x, y in zip(p, q)) for p, q in zip(a, c))
    longer = sft_windows(split, SFTConfig(steps=12, seed=3))
    assert all(np.array_equal(x, y) for p, q in zip(a, longer) for x, y in zip(p, q))


def test_windows_of_a_split_are_the_retrieval_task(split):
    "Two ways to the same batches: a split, and the task `retrieval`."
    sid_model = SidModel.extend(*load_base("tiny-llama"), SIDS)
    ours = WindowBatches(sid_model, split, SFTConfig(steps=20, batch_size=4, window=5, seed=2))
    theirs = example_batches(make_tasks("retrieval", sid_model, load_dataset("toy"), split, TaskSettings(window=5)), steps=20, batch_size=4, seed=2)
    for a, b in zip(ours, theirs, strict=True):
        assert all(np.array_equal(x.ids, y.ids) and np.array_equal(x.scored, y.scored) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("old_rows", ["frozen", "trained"])
def test_old_rows_move_only_by_choice(old_rows, split):
    sid_model = SidModel.extend(*load_base("tiny-llama-untied"), SIDS)
    rows, layers = sid_model.old_hash(backbone=False), sid_model.old_hash()
    finetune(sid_model, split, SFTConfig(steps=3, batch_size=4, window=5, old_rows=old_rows, precision="fp32"), progress=False)
    assert (sid_model.old_hash(backbone=False) == rows) == (old_rows == "frozen")
    assert sid_model.old_hash() != layers
    assert not sid_model.model.training


def test_bf16_learns_what_fp32_learns(split):
    ends = {}
    for precision in ("fp32", "bf16"):
        sid_model = SidModel.extend(*load_base("tiny-llama"), SIDS)
        result = finetune(sid_model, split, SFTConfig(steps=40, batch_size=8, window=6, learning_rate=3e-3, learning_rate_new=2e-2, precision=precision), progress=False)
        losses = [r["loss"] for r in result.losses]
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
        ends[precision] = np.mean(losses[-5:])
    assert abs(ends["bf16"] - ends["fp32"]) < 0.1 * ends["fp32"]


def test_a_diverging_run_stops_by_name(split):
    sid_model = SidModel.extend(*load_base("tiny-llama"), SIDS)
    sid_model.new_rows.data[:] = float("inf")
    with pytest.raises(GTIError, match="step 0, next_item: the loss is nan"): finetune(sid_model, split, SFTConfig(steps=2, precision="fp32"), progress=False)
