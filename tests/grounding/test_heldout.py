"Evaluating held-out pairs never costs more than the stage itself, and the result says how many were evaluated."

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.grounding.batches import PairBatches
from gti_nb.grounding.full import FullConfig, ground_full
from gti_nb.grounding.pairs import GroundingPairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground, heldout_sample
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds


@pytest.fixture(scope="module")
def toy():
    return load_dataset("toy")


@pytest.fixture(scope="module")
def many(toy):
    "Few pairs for training, and many held out: the same twenty items a hundred times."
    sids = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))
    pairs = grounding_pairs(toy, sids, holdout=0.5)
    return sids, GroundingPairs(pairs.train, pd.concat([pairs.heldout] * 100, ignore_index=True))


def encoded(prefix, rest):
    "Encoded pairs of given lengths."
    n = len(prefix)
    ids = dict(prefix=[[0] * k for k in prefix], rest=[[0] * k for k in rest], n_targets=[1] * n, fixed=[1] * n)
    return pd.DataFrame(dict(template=["t/0"] * n, direction=["text_to_sid"] * n, **ids))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(1, 60)), min_size=1, max_size=30),
    st.integers(1, 20),
    st.integers(1, 40),
    st.integers(0, 10),
    st.integers(1, 500),
)
def test_the_evaluations_of_a_stage_cost_at_most_a_quarter_of_its_steps(lengths, batch, steps, eval_steps, held):
    rng = np.random.default_rng(0)
    train = encoded(*zip(*lengths, strict=True))
    schedule = [rng.integers(len(train), size=batch) for _ in range(steps)]
    config = GroundingConfig(steps=steps, eval_steps=eval_steps)
    batches = PairBatches(train, schedule)
    frame = pd.DataFrame(dict(template=rng.choice(["a", "b"], held)))
    sample = heldout_sample(GroundingPairs(train, frame), batches, config)
    evaluations = 2 + (-(-steps // eval_steps) if eval_steps else 0)
    prefix, rest = (np.array(x) for x in zip(*lengths, strict=True))
    shown = np.concatenate(schedule)
    work = (prefix - 1)[np.unique(shown)].sum() + 2 * rest[shown].sum()
    spare = 2  # a sample has at least one pair of every template, and rounding may add one more
    assert (len(sample) - spare) * evaluations * (prefix - 1 + rest).mean() <= work / 4
    assert set(sample.template) == set(frame.template) and sample.index.is_monotonic_increasing
    assert sample.equals(heldout_sample(GroundingPairs(train, frame), batches, config))


@pytest.mark.parametrize("stage, settings", [(ground, GroundingConfig), (ground_full, FullConfig)])
def test_a_sample_is_evaluated_and_stated(many, stage, settings):
    sids, pairs = many
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    read = dict(steps=0, evaluation=0)
    base = extended.model.base_model

    def count(module, args, kwargs):
        if torch.is_grad_enabled() and extended.new_rows.requires_grad:
            read["steps"] += kwargs["input_ids"].numel()
        else:
            read["evaluation"] += kwargs["input_ids"].numel()

    hook = base.register_forward_pre_hook(count, with_kwargs=True)
    result = stage(extended, pairs, settings(steps=6, batch_size=8, precision="fp32"), progress=False)
    hook.remove()
    counts = result.heldout["pairs"]
    assert counts["held_out"] == len(pairs.heldout) == 4000 and 2 <= counts["evaluated"] <= 40
    assert set(result.heldout["after"]) == {"text_to_sid", "sid_to_text"}
    if stage is ground_full:
        assert read["evaluation"] <= read["steps"]


def test_the_choice_of_all_or_of_a_number_is_kept(many):
    sids, pairs = many
    train = encoded([3] * 4, [2] * 4)
    batches = PairBatches(train, [np.arange(4)])
    for asked, found in ((0, 4000), (100, 100), (5000, 4000)):
        assert len(heldout_sample(pairs, batches, GroundingConfig(heldout_pairs=asked))) == found
    for wrong in (-1, 1.5, "all"):
        with pytest.raises(GTIError, match="heldout_pairs"):
            GroundingConfig(heldout_pairs=wrong)
    other = heldout_sample(pairs, batches, GroundingConfig(heldout_pairs=100, seed=1))
    assert not other.index.equals(heldout_sample(pairs, batches, GroundingConfig(heldout_pairs=100)).index)


def test_memory_that_runs_out_while_evaluating_names_the_pairs(many, monkeypatch):
    from gti_nb.grounding.loss import GroundingLoss

    def full(self, *args, **kw):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sids, pairs = many
    monkeypatch.setattr(GroundingLoss, "_sum", full)
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    with pytest.raises(GTIError, match=r"out of memory \(\d+ pairs, [\d,]+ tokens.*logits of \d+ targets.*MB\); lower max_text_tokens"):
        ground(extended, pairs, GroundingConfig(steps=2, precision="fp32"), progress=False)
