"Targets shared among near codes: the loss and its gradient against a plain model, resumed runs, what is refused, and what they are for."

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from grounding.test_exact import MODELS, base

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.grounding.batches import DrawnAnswers, PairBatches
from gti_nb.grounding.full import FullConfig
from gti_nb.grounding.loss import GroundingLoss
from gti_nb.grounding.pairs import described_pairs, encode_pairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.grounding.targets import SharedTargets
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.kmeans import RQKMeans


@pytest.fixture(scope="module")
def toy():
    "Films, their vectors, and semantic IDs with a third level without vectors."
    dataset = load_dataset("toy")
    vectors = F.normalize(torch.randn(dataset.n_items, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    return dataset, vectors, RQKMeans(levels=2, codes=5).fit(vectors).resolve("extra_level")


def test_draws_follow_the_shares_and_the_seed_alone(toy):
    _, vectors, sids = toy
    targets, item = SharedTargets(sids, vectors, 1.0), torch.zeros(4000, dtype=torch.long)
    codes, shares = targets.draw(item, seed=0)
    found = torch.bincount(codes[:, 0], minlength=5) / 4000
    assert (found - shares[0][0]).abs().max() < 0.05
    for first in codes[:, 0].unique():  # what a drawn code leaves of the vector decides the next target
        left, at = vectors[0].double() - sids.codebooks[0][first].double(), codes[:, 0] == first
        expected = (-(left - sids.codebooks[1].double()).square().sum(1) / targets.temperature[1]).softmax(0).float()
        torch.testing.assert_close(shares[1][at], expected.expand(int(at.sum()), -1))
    assert torch.equal(codes, targets.draw(item, seed=0)[0]) and not torch.equal(codes, targets.draw(item, seed=1)[0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", [0, 2e9], ids=["computed anew", "kept"])
def test_loss_and_gradient_are_those_of_a_cross_entropy_with_shared_targets(name, cache, toy):
    dataset, vectors, sids = toy
    extended = ExtendedModel.extend(*base(name), sids)
    initialize(extended, "normal_matched")
    extended.train_only(backbone=False)
    pairs = grounding_pairs(dataset, sids, ("text_to_sid",), holdout=0)
    encoded, items, rows = encode_pairs(extended, pairs.train), pairs.train["item"].to_numpy(copy=True), np.array([3, 8, 21, 30, 5])
    answers = DrawnAnswers(SharedTargets(sids, vectors, 0.5), items, extended.n_pretrained, seed=7)
    batch = PairBatches(encoded, [rows], answers)(0)
    batch.pop("direction")
    batch.pop("share")
    assert any(drawn != own for drawn, own in zip(batch["rest"], encoded.rest.iloc[rows], strict=True)), (
        "every code drawn is the item's own, so nothing was tested"
    )
    loss, parameters = GroundingLoss(extended, cache_bytes=cache), extended.new_parameters()
    value = loss(**batch)
    found = torch.autograd.grad(value, parameters)
    total = 0.0
    for place, prefix in enumerate(encoded.prefix.iloc[rows]):  # one by one, every token through the model, the full vocabulary's softmax
        whole = prefix + batch["rest"][place]
        logp = extended.model(torch.tensor(whole)[None]).logits[0, -sids.levels - 1 : -1].log_softmax(-1)
        for level, (offset, size) in enumerate(zip(sids.offsets, sids.level_sizes, strict=True)):
            total = (
                total
                - (batch["soft"][level][place] * logp[level, extended.n_pretrained + offset : extended.n_pretrained + offset + size]).sum()
            )
    expected = total / (len(rows) * sids.levels)
    assert abs(value.item() - expected.item()) < 1e-4 * abs(expected.item())
    for a, b in zip(found, torch.autograd.grad(expected, parameters), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_a_temperature_of_nothing_is_the_hard_loss(toy):
    dataset, vectors, sids = toy
    rows = {}
    for soften in (0, 1e-6):
        extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
        initialize(extended, "normal_matched")
        ground(
            extended,
            grounding_pairs(dataset, sids),
            GroundingConfig(steps=12, batch_size=8, soften=soften, precision="fp32"),
            progress=False,
            vectors=vectors,
        )
        rows[soften] = extended.new_rows.detach().clone()
    torch.testing.assert_close(rows[0], rows[1e-6], atol=1e-4, rtol=1e-3)


def test_parts_of_a_batch_are_the_batch(toy):
    dataset, vectors, sids = toy
    rows = []
    for parts in (1, 4):
        extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
        initialize(extended, "normal_matched")
        ground(
            extended,
            grounding_pairs(dataset, sids),
            GroundingConfig(steps=8, batch_size=8, soften=0.3, gradient_accumulation_steps=parts, precision="fp32"),
            progress=False,
            vectors=vectors,
        )
        rows.append(extended.new_rows.detach().clone())
    torch.testing.assert_close(*rows, atol=1e-4, rtol=1e-3)


def test_a_run_with_other_targets_does_not_resume_from_a_checkpoint(toy, tmp_path):
    dataset, vectors, sids = toy

    class Stop(Exception):
        pass

    from transformers import TrainerCallback

    class After(TrainerCallback):
        def on_step_begin(self, args, state, control, **kw):
            if state.global_step == 4:
                raise Stop

    def start():
        return ExtendedModel.extend(*load_base("tiny-llama"), sids)

    config, pairs = GroundingConfig(steps=8, batch_size=8, soften=0.3, save_steps=2, precision="fp32"), grounding_pairs(dataset, sids)
    with pytest.raises(Stop):
        ground(start(), pairs, config, tmp_path, [After()], progress=False, vectors=vectors)
    with pytest.raises(GTIError, match="targets"):
        ground(start(), pairs, config, tmp_path, progress=False, vectors=vectors.flip(0))
    resumed, whole = start(), start()
    assert ground(resumed, pairs, config, tmp_path, progress=False, vectors=vectors).resumed
    ground(whole, pairs, config, progress=False, vectors=vectors)
    assert torch.equal(resumed.new_rows, whole.new_rows)


def test_what_cannot_be_shared_is_refused(toy):
    dataset, vectors, sids = toy
    extended, pairs = ExtendedModel.extend(*load_base("tiny-llama"), sids), grounding_pairs(dataset, sids)
    with pytest.raises(GTIError, match="pass vectors="):
        ground(extended, pairs, GroundingConfig(steps=1, soften=0.3))
    with pytest.raises(GTIError, match="of 3 items"):
        ground(extended, pairs, GroundingConfig(steps=1, soften=0.3), vectors=vectors[:3])
    with pytest.raises(GTIError, match="soften: got -1"):
        GroundingConfig(soften=-1)
    with pytest.raises(GTIError, match="leave it at 0"):
        FullConfig(soften=0.3)
    described = ExtendedModel.extend(*load_base("tiny-llama"), {"<sun>": "shines", "<moon>": "shines at night"})
    with pytest.raises(GTIError, match="described tokens"):
        ground(described, described_pairs(described), GroundingConfig(steps=1, soften=0.3), vectors=vectors)
