"The loss of a batch: padded, packed, with shared prefixes."

import itertools
import os

import numpy as np
import pytest
import torch
from sft_models import SHAPES, assert_close, mixed, shaped
from transformers import DynamicCache

from gti_nb.core import GTIError
from gti_nb.sft.adapters import add_adapters
from gti_nb.sft.examples import Example
from gti_nb.sft.loss import SFTLoss, check_loss, collate, fed_tokens, packed_rows, shared_groups

# ---- the loss


@pytest.mark.parametrize("name", SHAPES)
def test_padded_and_packed_losses_and_gradients_are_the_models_own(name, toy, split):
    extended = shaped(name)
    batch = mixed(extended, toy, split)[1]
    extended.train_only(backbone=True)
    results = []
    labels = [torch.tensor(np.where(e.scored, e.ids, -100)[1:]) for e in batch]
    own = sum(
        torch.nn.functional.cross_entropy(extended.model(input_ids=torch.tensor(e.ids)[None]).logits[0, :-1], label, reduction="sum")
        for e, label in zip(batch, labels, strict=True)
    ) / sum(int(e.scored.sum()) for e in batch)
    for loss in (own, SFTLoss(extended)(batch)[0], SFTLoss(extended, packing=400)(batch)[0]):
        extended.model.zero_grad()
        loss.backward()
        results.append((loss.item(), {n: p.grad.clone() for n, p in extended.model.named_parameters() if p.grad is not None}))
    rows = packed_rows([len(e.ids) for e in batch], 400)
    assert len(rows) < len(batch), "nothing was packed, so nothing was tested"
    for value, grads in results[1:]:
        assert abs(value - results[0][0]) < 1e-5
        assert_close(grads, results[0][1])


def test_an_example_alone_and_in_a_packed_row_have_the_same_loss_per_task(toy, split):
    extended = shaped("llama")
    batch = mixed(extended, toy, split, batch_size=12)[0]
    padded, packed = SFTLoss(extended)(batch)[1], SFTLoss(extended, packing=300)(batch)[1]
    assert padded.keys() == packed.keys() and len(padded) > 1
    for task in padded:
        torch.testing.assert_close(padded[task], packed[task], atol=1e-4, rtol=0)


@pytest.mark.parametrize("room", [1, 20, 64])
def test_rows_hold_every_example_once_and_no_more_than_their_room(room):
    lengths = np.random.default_rng(0).integers(2, 30, 50).tolist()
    rows = packed_rows(lengths, room)
    assert sorted(i for row in rows for i in row) == list(range(50))
    assert max(sum(lengths[i] for i in row) for row in rows) <= max(room, max(lengths))
    examples = [Example("t", np.arange(1, n + 1), np.arange(n) >= 1) for n in lengths]
    ids, positions, target_of = collate(examples, room)
    assert ids.shape[0] * (ids.shape[1] - 1) == fed_tokens(lengths, room)
    assert [(target_of == i).sum().item() for i in range(50)] == [n - 1 for n in lengths]
    assert torch.equal(ids[target_of >= 0], positions[target_of >= 0] + 1), "a token is at its position in its own example"


# ---- a shared prefix


def brute_force(lengths, firsts, common, pass_cost):
    "Cost of the best cut of a sorted batch, by trying every one."

    def cost(a, b):
        n, longest, shared = b - a, max(lengths[a:b]), min([*firsts[a:b], *common[a : b - 1]])
        return min(n * longest + pass_cost, shared + n * (longest - shared) + 2 * pass_cost)

    n = len(lengths)
    return min(
        sum(cost(a, b) for a, b in itertools.pairwise([0, *cuts, n])) for k in range(n) for cuts in itertools.combinations(range(1, n), k)
    )


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_every_example_once_share_no_target_and_cost_least(seed):
    rng, pass_cost = np.random.default_rng(seed), int(np.random.default_rng(seed).integers(0, 9))
    heads = [rng.integers(0, 9, n) for n in (3, 6, 6)]
    examples = [
        Example("t", np.concatenate([head, rng.integers(0, 3, n)]), np.arange(len(head) + n) >= rng.integers(1, len(head) + 1))
        for head in heads
        for n in rng.integers(1, 5, 3)
    ]
    groups = shared_groups(examples, pass_cost)
    assert sorted(i for group, _ in groups for i in group) == list(range(len(examples)))
    for group, shared in groups:
        assert len({tuple(examples[i].ids[:shared].tolist()) for i in group}) == 1
        assert all(shared < len(examples[i].ids) and not examples[i].scored[:shared].any() for i in group)
    order = sorted(examples, key=lambda e: e.ids.tolist())
    common = [len(os.path.commonprefix([a.ids.tolist(), b.ids.tolist()])) for a, b in itertools.pairwise(order)]
    best = brute_force([len(e.ids) - 1 for e in order], [int(e.scored.argmax()) for e in order], common, pass_cost)
    assert (
        sum(fed_tokens([len(examples[i].ids) for i in group], 0, shared) + pass_cost * (1 + bool(shared)) for group, shared in groups)
        == best
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_shared_prefix_changes_neither_loss_nor_gradient(name, toy, split):
    extended = shaped(name)
    batch = mixed(extended, toy, split, batch_size=10)[1]
    extended.train_only(backbone=True)
    found = []
    for share in (False, True):
        loss = SFTLoss(extended)
        loss.share = share
        loss.pass_cost = 1
        extended.model.zero_grad()
        value, tasks = loss(batch)
        value.backward()
        found.append(
            (loss.fed(batch), value.item(), tasks, {n: p.grad.clone() for n, p in extended.model.named_parameters() if p.grad is not None})
        )
    assert found[1][0] < 0.8 * found[0][0] and any(shared for _, shared in loss.groups(batch)), "nothing was shared, so nothing was tested"
    assert abs(found[0][1] - found[1][1]) < 1e-5
    for task in found[0][2]:
        torch.testing.assert_close(found[0][2][task], found[1][2][task], atol=1e-4, rtol=0)
    assert_close(found[1][3], found[0][3])


def test_examples_with_one_token_after_the_prefix(toy, split):
    extended = shaped("llama")
    batch = [Example("t", np.array([5, 6, 7, n]), np.array([False, False, False, True])) for n in (8, 9, 8)]
    loss = SFTLoss(extended)
    loss.pass_cost = 0
    assert loss.groups(batch) == [([0, 2, 1], 3)] and loss.fed(batch) == 3
    alone = SFTLoss(extended)
    alone.share = False
    assert abs(loss(batch)[0].item() - alone(batch)[0].item()) < 1e-6


def test_a_model_that_continues_differently_after_a_prefix_is_read_whole(toy, split):
    extended = shaped("llama")
    batch, loss = mixed(extended, toy, split, batch_size=10)[1], SFTLoss(extended)
    check_loss(loss, batch)
    assert loss.share

    def forgetful(module, args, kwargs):  # loses what was read before
        if kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"] = DynamicCache()
        return args, kwargs

    extended.model.base_model.register_forward_pre_hook(forgetful, with_kwargs=True)
    check_loss(loss, batch)
    assert not loss.share and loss.groups(batch) == [(list(range(10)), 0)]


def test_no_prefix_is_shared_where_it_cannot_be_read_ahead(toy, split):
    extended = shaped("llama")
    batch = mixed(extended, toy, split, batch_size=10)[1]

    def shares(loss):
        return any(shared for _, shared in loss.groups(batch))

    assert shares(SFTLoss(extended)) and not shares(SFTLoss(extended, packing=300))
    extended.model.gradient_checkpointing_enable()
    assert not shares(SFTLoss(extended))
    extended.model.gradient_checkpointing_disable()
    assert shares(SFTLoss(extended))
    add_adapters(extended, dropout=0.05)
    assert not shares(SFTLoss(extended))


def test_a_model_that_mixes_packed_examples_is_refused(toy, split):
    extended = shaped("llama")
    batch = mixed(extended, toy, split)[0]
    embed = extended.embed
    leak = embed.register_forward_hook(
        lambda m, args, out: out + 0.02 * out.cumsum(1).roll(1, 1) * (torch.arange(out.shape[1]) > 40)[None, :, None]
    )  # a token sees what stands far before it
    with pytest.raises(GTIError, match="keep packed examples apart"):
        check_loss(SFTLoss(extended, packing=400), batch)
    leak.remove()
    check_loss(SFTLoss(extended, packing=400), batch)


def test_a_model_that_cannot_continue_from_a_prefix_is_read_whole(toy, split):
    extended = shaped("llama")

    def only_whole(module, args, kwargs):
        if kwargs.get("past_key_values") is not None:
            raise IndexError("list index out of range")

    broken = extended.backbone.register_forward_pre_hook(only_whole, with_kwargs=True)
    check_loss(loss := SFTLoss(extended), mixed(extended, toy, split)[0])
    assert not loss.share
    broken.remove()
