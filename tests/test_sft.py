"Fine-tuning: what it sees, what it moves."
import numpy as np, pytest, torch
from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data import load_dataset
from gti_nb.sft.batches import example_batches
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.stage import SFTConfig, _batches, finetune
from gti_nb.sft.tasks import TaskSettings, make_tasks
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vocab import SidModel

SIDS = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))

@pytest.fixture(scope="module")
def split(): return load_dataset("toy").leave_one_out()


def test_a_split_is_short_for_the_task_retrieval(split):
    "The same losses and weights, whichever way the windows come."
    config, ends = SFTConfig(steps=6, batch_size=4, window=5, seed=2, precision="fp32"), []
    for given in (lambda _: split, lambda sid_model: example_batches(make_tasks("retrieval", sid_model, split=split, settings=TaskSettings(window=5)), steps=6, batch_size=4, seed=2)):
        sid_model = SidModel.extend(*load_base("tiny-llama"), SIDS)
        result = finetune(sid_model, given(sid_model), config, progress=False)
        ends.append(([(r["direction"], r["loss"]) for r in result.losses], sid_model.old_hash()))
    assert ends[0] == ends[1] and {direction for direction, _ in ends[0][0]} == {"retrieval"}


def test_held_out_items_of_a_user_never_train(split):
    "Every window is a run of consecutive training items of one user, and no longer than the settings say."
    sid_model = SidModel.extend(*load_base("tiny-llama"), SIDS)
    item_of = {tuple(codes): item for item, codes in enumerate(sid_model.token_ids.tolist())}
    runs = {tuple(s[a:b].tolist()) for s in split.train for a in range(len(s)) for b in range(a + 1, min(a + 5, len(s)) + 1)}
    for batch in _batches(sid_model, split, SFTConfig(steps=30, batch_size=4, window=5)):
        for example in batch: assert tuple(item_of[tuple(codes)] for codes in example.ids[example.scored].reshape(-1, 2).tolist()) in runs


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
    with pytest.raises(GTIError, match="step 0, retrieval: the loss is nan"): finetune(sid_model, split, SFTConfig(steps=2, precision="fp32"), progress=False)
