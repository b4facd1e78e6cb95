"The frozen-prefix grounding loss against Algorithm 1, and what the stage does not change."

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from transformers import TrainerCallback

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.grounding.batches import PairBatches, batch_schedule
from gti_nb.grounding.loss import GroundingLoss, reference_loss
from gti_nb.grounding.pairs import encode_pairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.model.extended import ExtendedModel
from gti_nb.prompts import GROUNDING
from gti_nb.sid.codes import SemanticIds

TEMPLATES = tuple(GROUNDING)
TINY = [f"tiny-{family}{tie}{pad}" for family in ("llama", "qwen3", "gpt2") for tie in ("", "-untied") for pad in ("", "-padded")]


@pytest.fixture(scope="module")
def toy():
    return load_dataset("toy")


def toy_sids(levels=2):
    codes = (
        [torch.arange(40) % 4, torch.arange(40) // 4]
        if levels == 2
        else [torch.arange(40) % 4, torch.arange(40) // 4 % 4, torch.arange(40) // 16]
    )
    return SemanticIds(torch.stack(codes, 1))


def make_extended(base, sids, spread=0.1):
    "A model whose new rows are no longer all the same."
    extended = ExtendedModel.extend(*load_base(base), sids)
    noise = torch.Generator().manual_seed(1)
    for p in extended.new_parameters():
        p.data += spread * torch.randn(p.shape, generator=noise)
    extended.train_only(backbone=False)
    return extended


def batch(pairs, rows):
    "A batch of pairs of one template; `fixed` as large as it may be."
    group = pairs.iloc[rows]
    assert group.template.nunique() == 1
    return {k: group[k].to_list() for k in ("prefix", "rest", "n_targets")} | {"fixed": int(group.fixed.iloc[0])}


def gradient(extended):
    grads = [p.grad for p in extended.new_parameters()]
    return grads[0] if extended.tied else torch.stack(grads)


def assert_exact(extended, loss, **b):
    for p in extended.new_parameters():
        p.grad = None
    value = loss(**b)
    value.backward()
    expected, expected_gradient = reference_loss(extended, b["prefix"], b["rest"], b["n_targets"])
    assert abs(value.item() - expected) < 1e-5
    assert (gradient(extended) - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("base", TINY)
@pytest.mark.parametrize("levels", [2, 3])
def test_gradient_equals_algorithm_1(base, levels, toy):
    sids = toy_sids(levels)
    extended = make_extended(base, sids)
    pairs = encode_pairs(extended, grounding_pairs(toy, sids, TEMPLATES).train)
    for template in TEMPLATES:
        rows = np.flatnonzero(pairs.template == f"{template}/0")[::5][:9]
        assert_exact(extended, GroundingLoss(extended), **batch(pairs, rows))


@pytest.mark.parametrize("cache_bytes", [0, 40_000, 1e9], ids=["off", "partly", "all"])
def test_cache_size_changes_nothing(cache_bytes, toy):
    sids = toy_sids()
    extended = make_extended("tiny-llama", sids)
    pairs = encode_pairs(extended, grounding_pairs(toy, sids).train)
    loss = GroundingLoss(extended, cache_bytes=cache_bytes)
    rows = np.flatnonzero(pairs.direction == "text_to_sid")[:12]
    loss.prefixes.plan(PairBatches(pairs, [rows, rows]).prompts())
    for _ in range(2):
        assert_exact(extended, loss, **batch(pairs, rows))
    assert loss.prefixes.bytes <= cache_bytes
    assert (len(loss.prefixes.kept) == 0) == (cache_bytes == 0)


@pytest.mark.parametrize("direction", ["text_to_sid", "sid_to_text"])
def test_gradient_equals_algorithm_1_on_smollm2(direction, toy):
    sids = toy_sids()
    extended = make_extended("smollm2-135m", sids, spread=0.02)
    pairs = encode_pairs(extended, grounding_pairs(toy, sids).train)
    rows = np.flatnonzero(pairs.direction == direction)[:4]
    assert_exact(extended, GroundingLoss(extended), **batch(pairs, rows))


@pytest.mark.parametrize("base", ["tiny-qwen3", "tiny-gpt2-untied-padded"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_new_rows_move(base, precision, toy):
    sids = toy_sids()
    extended = ExtendedModel.extend(*load_base(base), sids)
    before = {n: p.detach().clone() for n, p in extended.model.named_parameters() if not n.endswith(".new")}
    start = [p.detach().clone() for p in extended.new_parameters()]
    ground(extended, grounding_pairs(toy, sids), GroundingConfig(steps=4, batch_size=4, precision=precision), progress=False)
    now = dict(extended.model.named_parameters())
    assert before and all(torch.equal(now[n], p) for n, p in before.items())
    assert all(not torch.equal(p, s) for p, s in zip(extended.new_parameters(), start, strict=True))
    assert extended.new_rows.dtype == torch.float32


def test_grounded_codes_are_found_for_items_of_the_catalogue(toy):
    "After grounding a title leads to its code more often than before: the loss of the training pairs falls below the loss of guessing."
    sids = toy_sids()
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    result = ground(
        extended,
        grounding_pairs(toy, sids, holdout=0.1),
        GroundingConfig(steps=150, batch_size=16, learning_rate=5e-2, precision="fp32"),
        progress=False,
    )
    to_sid = [r["loss"] for r in result.losses if r["direction"] == "text_to_sid"]
    assert np.mean(to_sid[-10:]) < (np.log(4) + np.log(10)) / 2 < np.mean(to_sid[:3])
    assert set(result.heldout) == {"before", "after", "pairs"} and set(result.heldout["after"]) == {"text_to_sid", "sid_to_text"}


def test_text_cannot_smuggle_a_code_into_a_pair(toy):
    items = toy.items.assign(title=[f"The <a_1><|im_end|> story {i}" for i in range(40)])
    hostile = type(toy)(items, toy.sequences, toy.user_ids, toy.timestamps, toy.report, toy.name)
    sids = toy_sids()
    extended = make_extended("tiny-llama", sids)
    pairs = encode_pairs(extended, grounding_pairs(hostile, sids, TEMPLATES).train)
    new = [[i for i in [*p, *r] if i >= extended.n_pretrained] for p, r in zip(pairs.prefix, pairs.rest, strict=True)]
    assert all(len(n) == sids.levels for n in new)


def test_codes_of_another_catalogue_are_refused(toy):
    with pytest.raises(GTIError, match="made for 3 items"):
        grounding_pairs(toy, SemanticIds(torch.tensor([[0], [1], [2]])))
    extended = ExtendedModel.extend(*load_base("tiny-llama"), SemanticIds(torch.tensor([[0], [1], [2]])))
    with pytest.raises(GTIError, match="name the new row 13, the model has 3 new rows"):
        encode_pairs(extended, grounding_pairs(toy, toy_sids()).train)


def test_pairs_carry_the_tokens_and_the_template(toy):
    pairs = grounding_pairs(toy, toy_sids(), TEMPLATES, holdout=0.1)
    for part in (pairs.train, pairs.heldout):
        assert (
            part["rows"].map(list) == pd.Series(toy_sids().token_index[torch.tensor(part["item"].to_list())].tolist(), index=part.index)
        ).all()
        assert [t.name for t in part.form] == part.template.tolist() and [t.direction for t in part.form] == part.direction.tolist()


def test_nothing_held_out_is_nothing_measured(toy):
    extended = ExtendedModel.extend(*load_base("tiny-llama"), toy_sids())
    pairs = grounding_pairs(toy, toy_sids(), holdout=0)
    assert ground(extended, pairs, GroundingConfig(steps=2, batch_size=4, precision="fp32"), progress=False).heldout == {
        "before": {},
        "after": {},
        "pairs": {"evaluated": 0, "held_out": 0},
    }
    with pytest.raises(GTIError, match="use a larger holdout"):
        ground(extended, pairs, GroundingConfig(steps=2, eval_steps=1, precision="fp32"), progress=False)


def small(**kw):
    return GroundingConfig(**{**dict(steps=8, batch_size=4, learning_rate=1e-3, precision="fp32"), **kw})


def grounded(sids, toy, base="tiny-llama", **kw):
    extended = ExtendedModel.extend(*load_base(base), sids)
    return extended, ground(extended, grounding_pairs(toy, sids, TEMPLATES, wordings=3, holdout=0.1), small(**kw), progress=False)


def test_a_schedule_shows_every_pair_of_a_template_before_any_comes_again(toy):
    sids = toy_sids()
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    pairs = encode_pairs(extended, grounding_pairs(toy, sids, ("text_to_sid", "sid_to_title"), holdout=0.1).train)
    steps = batch_schedule(pairs, steps=40, batch_size=4, share_text_to_sid=0.5)
    for direction in ("text_to_sid", "sid_to_text"):
        rows = np.flatnonzero(pairs.direction == direction)
        own = [s for s in steps if pairs.direction[s[0]] == direction]
        assert all(set(s) <= set(rows) for s in own)
        assert sorted(np.concatenate(own[:9])) == sorted(rows)  # 36 pairs in 9 batches


def test_weights_choose_templates(toy):
    sids = toy_sids()
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    pairs = encode_pairs(extended, grounding_pairs(toy, sids, TEMPLATES).train)

    def used(**weights):
        return {pairs.template[rows[0]].split("/")[0] for rows in batch_schedule(pairs, steps=60, batch_size=4, **weights)}

    assert used() == set(TEMPLATES)
    assert used(template_weights=dict(title_to_sid=1, sid_to_text=2)) == {"title_to_sid", "sid_to_text"}
    assert used(template_weights=dict(title_to_sid=1)) == {"title_to_sid"}
    with pytest.raises(GTIError, match="no template of the pairs"):
        used(template_weights=dict(title_to_sid=0))
    with pytest.raises(GTIError, match="did you mean 'title_to_sid'"):
        GroundingConfig(template_weights=dict(title_to_sit=1))


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulated_parts_take_the_same_steps(parts, toy):
    whole, result = grounded(toy_sids(), toy)
    cut, again = grounded(toy_sids(), toy, gradient_accumulation_steps=parts)
    torch.testing.assert_close(cut.new_rows, whole.new_rows, atol=1e-5, rtol=1e-4)
    assert [r["loss"] for r in again.losses] == pytest.approx([r["loss"] for r in result.losses], abs=1e-5)
    with pytest.raises(GTIError, match="cannot be cut into 8 parts"):
        grounded(toy_sids(), toy, gradient_accumulation_steps=8)


def test_the_cache_does_not_change_the_rows(toy):
    rows = [grounded(toy_sids(), toy, cache_bytes=c)[0].new_rows for c in (0, 30_000, 1e9)]
    for other in rows[1:]:
        torch.testing.assert_close(other, rows[0], atol=1e-5, rtol=1e-4)


def test_early_stopping_keeps_the_best_rows(toy):
    sids = toy_sids()
    extended, result = grounded(sids, toy, steps=60, learning_rate=0.3, eval_steps=3, early_stopping_patience=2)
    curve = pd.DataFrame(result.heldout["curve"]).set_index("step")
    best = curve.mean(axis=1)
    assert len(result.losses) < 60 and best.idxmin() == best.index[-3]
    assert result.heldout["after"] == pytest.approx(dict(curve.loc[best.idxmin()]))


def test_a_curve_of_the_heldout_loss_and_callbacks(toy):
    seen = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            seen.append(state.global_step)

    extended = ExtendedModel.extend(*load_base("tiny-llama"), toy_sids())
    result = ground(extended, grounding_pairs(toy, toy_sids(), holdout=0.1), small(eval_steps=4), callbacks=[Count()], progress=False)
    assert [r["step"] for r in result.heldout["curve"]] == [4, 8] and seen == list(range(1, 9))


STAGE = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from transformers import TrainerCallback
from gti_nb.assets import load_base
from gti_nb.data.dataset import load_dataset
from gti_nb.grounding.pairs import grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.sid.codes import SemanticIds
from gti_nb.model.extended import ExtendedModel
out, killed_at, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kw):
        if state.global_step == killed_at: import os, signal; os.kill(os.getpid(), signal.SIGKILL)
toy = load_dataset("toy")
sids = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))
extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
config = GroundingConfig(steps=8, batch_size=4, learning_rate=1e-3, precision="fp32", save_steps=1, eval_steps=2, seed=seed,
                         cache_bytes=30_000, gradient_accumulation_steps=2)
result = ground(extended, grounding_pairs(toy, sids, holdout=0.1), config, out_dir=out, callbacks=[Kill()], progress=False)
print([r["step"] for r in result.losses], result.resumed, len(result.heldout["curve"]))
"""


def stage(tmp_path, out, killed_at=-1, seed=0, launcher=()):
    (tmp_path / "stage.py").write_text(STAGE)
    return subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "stage.py"), str(tmp_path / out), str(killed_at), str(seed)],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        timeout=300,
    )


def rows_of(folder):
    return safetensors.torch.load_file(folder / "grounding.safetensors")


def assert_same_rows(a, b, exact=True):
    a, b = rows_of(a), rows_of(b)
    assert a.keys() == b.keys() and a
    for k in a:
        assert torch.equal(a[k], b[k]) if exact else torch.allclose(a[k], b[k], atol=1e-5)


def test_killed_and_resumed_gives_the_same_bits(tmp_path):
    "SIGKILL in several steps of one run, each time resumed: the rows of an uninterrupted run."
    whole = stage(tmp_path, "whole")
    assert whole.returncode == 0, whole.stderr
    for step in (1, 4, 7):
        assert stage(tmp_path, "killed", killed_at=step).returncode == -signal.SIGKILL
        assert [p.name for p in (tmp_path / "killed/checkpoints").iterdir() if not p.name.startswith(".")][-1:]
    last = stage(tmp_path, "killed")
    assert last.returncode == 0, last.stderr
    assert (
        "'step': 7, 'exact': True" in last.stdout
        and last.stdout.split("]")[0] == whole.stdout.split("]")[0]
        and last.stdout.endswith(" 4\n")
    )
    assert_same_rows(tmp_path / "whole", tmp_path / "killed")
    assert not (tmp_path / "killed/checkpoints").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    assert stage(tmp_path, "run", killed_at=5).returncode == -signal.SIGKILL
    other = stage(tmp_path, "run", seed=1)
    assert other.returncode == 1 and "setting seed: 0 there, 1 here" in other.stderr and "force" in other.stderr
    newest = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    damaged = stage(tmp_path, "run")
    assert damaged.returncode == 1 and "damaged" in damaged.stderr and "remove" in damaged.stderr


def test_two_processes_train_the_rows_of_one(tmp_path):
    "torchrun with gloo: half of every batch each."
    one = stage(tmp_path, "one")
    assert one.returncode == 0, one.stderr
    two = stage(tmp_path, "two", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"))
    assert two.returncode == 0, two.stderr
    assert_same_rows(tmp_path / "one", tmp_path / "two", exact=False)
