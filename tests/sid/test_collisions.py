"Collision policies and new items, compared with brute force; what they must not change."

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from sid.test_codes import Walked, random_codes

from gti_nb.core import GTIError
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.collisions import POLICIES, sinkhorn, sinkhorn_plan

REASSIGN = ("sinkhorn", "hungarian")


def encoded(seed: int, n: int = 80, sizes=(4, 3, 12), d: int = 6) -> tuple[SemanticIds, torch.Tensor]:
    "Random vectors with the codes that greedy assignment gives them, so that many collide."
    g = torch.Generator().manual_seed(seed)
    books, vectors = [torch.randn(k, d, generator=g) * 0.6**level for level, k in enumerate(sizes)], torch.randn(n, d, generator=g)
    return SemanticIds(SemanticIds([[0] * len(sizes)], books).assign(vectors), books), vectors


def codes_of(sids: SemanticIds) -> list[tuple[int, ...]]:
    return [tuple(c) for c in sids.codes.tolist()]


def shared(sids: SemanticIds) -> int:
    return sum(n for n in Counter(codes_of(sids)).values() if n > 1)


# Every policy


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_prefix_levels_stay_and_the_policy_is_on_record(policy, seed):
    sids, vectors = encoded(seed)
    before, resolved = sids.codes.clone(), sids.resolve(policy, vectors)
    kept = sids.levels - (policy in REASSIGN)
    assert torch.equal(resolved.codes[:, :kept], sids.codes[:, :kept]) and torch.equal(sids.codes, before)
    assert resolved.policy == policy == resolved.summary()["policy"] and policy in repr(resolved)
    assert (shared(resolved) > 0) == ("still share" in repr(resolved)) or policy == "none"
    assert resolved.quality.get("unresolved", shared(resolved)) == shared(resolved)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_input_gives_equal_codes(policy):
    sids, vectors = encoded(0)
    assert sids.resolve(policy, vectors).content_hash == sids.resolve(policy, vectors.clone()).content_hash


@pytest.mark.parametrize("policy", REASSIGN)
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_items_does_not_matter(policy, seed):
    sids, vectors = encoded(seed)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    other = SemanticIds(sids.codes[order], sids.codebooks).resolve(policy, vectors[order])
    resolved = sids.resolve(policy, vectors)
    assert torch.equal(other.codes, resolved.codes[order])
    assert other.quality.pop("residual_energy") == pytest.approx(
        resolved.quality.pop("residual_energy")
    ) and other.quality == pytest.approx(resolved.quality)


@pytest.mark.parametrize("seed", range(4))
def test_order_relabels_equal_items_only(seed):
    "Which of several equal vectors moves depends on their rows; the set of codes they take does not."
    sids, vectors = encoded(seed, n=40)
    sids, vectors = SemanticIds(sids.codes.repeat(2, 1), sids.codebooks), vectors.repeat(2, 1)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    for policy in ("extra_level", "hungarian"):
        a, b = sids.resolve(policy, vectors), SemanticIds(sids.codes[order], sids.codebooks).resolve(policy, vectors[order])
        for i in range(40):
            twins = [(order == i).nonzero().item(), (order == i + 40).nonzero().item()]
            if policy == "hungarian":
                assert sorted(codes_of(a)[j] for j in (i, i + 40)) == sorted(codes_of(b)[j] for j in twins)
        assert Counter(codes_of(a)) == Counter(codes_of(b))


@pytest.mark.parametrize("policy", POLICIES)
def test_where_nothing_collides_nothing_changes(policy):
    sids = SemanticIds([[0, 0], [0, 1], [1, 0]], [torch.randn(2, 3), torch.randn(2, 3)])
    assert torch.equal(sids.resolve(policy).codes, sids.codes)


@pytest.mark.parametrize("policy", REASSIGN)
def test_report_of_the_moves(policy):
    sids, vectors = encoded(1)
    resolved = sids.resolve(policy, vectors)

    def error(s):
        return (vectors.double() - s.reconstruct().double()).square().sum(1)

    moved, grown = (resolved.codes != sids.codes).any(1), error(resolved) - error(sids)
    assert resolved.quality["moved"] == moved.sum() > 0 and resolved.quality["moved_share"] == pytest.approx(moved.double().mean().item())
    assert resolved.quality["moved_mean"] == pytest.approx(grown[moved].mean().item(), rel=1e-4)
    assert resolved.quality["moved_max"] == pytest.approx(grown[moved].max().item(), rel=1e-4)
    assert resolved.quality["extra_energy"] == pytest.approx((grown.sum() / vectors.square().sum()).item(), rel=1e-4)
    assert resolved.quality["residual_energy"] == pytest.approx(resolved.residual_energy(vectors))


@pytest.mark.parametrize("policy", REASSIGN)
def test_vectors_in_a_file_are_read_in_slices(policy):
    sids, vectors = encoded(0, n=17_000, sizes=(64, 128, 8))
    walked = Walked(vectors.numpy())
    assert sids.resolve(policy, walked).content_hash == sids.resolve(policy, vectors).content_hash
    assert 0 < walked.most <= 16_384


@pytest.mark.parametrize("policy", REASSIGN)
@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda x: None, "pass the vectors"),
        (lambda x: x[:9], "got 9 rows for 80 items"),
        (lambda x: x[:, :2], "expected .n, 6."),
        (lambda x: x * torch.nan, "row 0 holds NaN"),
    ],
)
def test_wrong_vectors_are_refused(policy, wrong, message):
    sids, vectors = encoded(0)
    with pytest.raises(GTIError, match=message):
        sids.resolve(policy, wrong(vectors))


# One more level


@pytest.mark.parametrize("seed", range(5))
def test_extra_level_counts_through_every_group_in_row_order(seed):
    sids, _ = random_codes(seed)
    resolved, seen = sids.resolve("extra_level"), {}
    for i in range(sids.n_items):
        sid = tuple(sids.codes[i].tolist())
        assert resolved.codes[i].tolist() == [*sid, seen.get(sid, 0)]
        seen[sid] = seen.get(sid, 0) + 1
    assert resolved.level_sizes == [4, 3, 2, max(seen.values())]
    assert resolved.policy == "extra_level" and resolved.summary()["distinct"] == sids.n_items


# The best assignment


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_is_the_best_assignment_by_brute_force(seed):
    g = torch.Generator().manual_seed(seed)
    books = [torch.randn(2, 3, generator=g), torch.randn(4, 3, generator=g)]
    vectors = torch.randn(7, 3, generator=g)
    first = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    nearest = torch.cdist(vectors - books[0][first], books[1]).argmin(1)
    nearest[1] = nearest[0]  # at least one collision under prefix 0
    sids = SemanticIds(torch.stack([first, nearest], 1), books)
    resolved = sids.resolve("hungarian", vectors)
    assert resolved.summary()["distinct"] == 7 and torch.equal(resolved.codes[:, 0], first)
    for prefix in (0, 1):
        items = sids.items_of((prefix,))
        if len(set(nearest[items].tolist())) == len(items):
            assert torch.equal(resolved.codes[items], sids.codes[items])
            continue
        cost = torch.cdist(vectors[items] - books[0][prefix], books[1]).square()
        best = min(sum(cost[i, k].item() for i, k in enumerate(ks)) for ks in itertools.permutations(range(4), len(items)))
        assert cost[range(len(items)), resolved.codes[items, 1]].sum().item() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_uses_every_code_of_an_overfull_prefix_at_the_least_cost(seed):
    g = torch.Generator().manual_seed(seed)
    books, vectors = [torch.zeros(1, 2), torch.randn(3, 2, generator=g)], torch.randn(5, 2, generator=g)
    cost = torch.cdist(vectors, books[1]).square()
    sids = SemanticIds(torch.stack([torch.zeros(5, dtype=torch.int64), cost.argmin(1)], 1), books)
    resolved = sids.resolve("hungarian", vectors)
    every = [ks for ks in itertools.product(range(3), repeat=5) if len(set(ks)) == 3]
    assert len(set(codes_of(resolved))) == 3 and resolved.quality["overfull_prefixes"] == 1
    assert cost[range(5), resolved.codes[:, 1]].sum().item() == pytest.approx(
        min(cost[range(5), list(ks)].sum().item() for ks in every), rel=1e-5
    )
    assert f"{shared(resolved)} items still share a semantic ID" in repr(resolved)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sizes", [(4, 3, 12), (4, 12), (2, 2, 4), (30,)])
def test_hungarian_leaves_no_collision_where_the_last_level_has_room(seed, sizes):
    sids, vectors = encoded(seed, sizes=sizes)
    resolved = sids.resolve("hungarian", vectors)
    under = {}
    for sid in codes_of(resolved):
        under.setdefault(sid[:-1], []).append(sid[-1])
    for codes in under.values():
        assert len(set(codes)) == min(len(codes), sizes[-1])
    assert resolved.quality["overfull_prefixes"] == sum(len(codes) > sizes[-1] for codes in under.values())


# Sinkhorn


@pytest.mark.parametrize("shape", [(6, 4), (2, 9), (5, 5)])
def test_plan_against_plain_scaling(shape):
    d = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = np.exp(-((d - (d.max() + d.min()) / 2) / ((d.max() - d.min()) / 2)).numpy() / 0.1)
    for _ in range(50):
        plan = plan / plan.sum(1, keepdims=True) / shape[0]
        plan = plan / plan.sum(0, keepdims=True) / shape[1]
    assert np.allclose(sinkhorn_plan(d, epsilon=0.1).numpy(), plan, atol=1e-12)
    both = sinkhorn_plan(torch.stack([d, 3 * d.flip(0) + 1]), epsilon=0.1)  # scale and offset of the distances do not matter
    assert torch.allclose(both[0], both[1].flip(0), atol=1e-9)


def test_plan_survives_extreme_distances():
    d = torch.tensor([[0.0, 1e-9, 1e9], [0, 0, 1e9], [5, 5, 5]])
    assert torch.isfinite(sinkhorn_plan(d)).all() and torch.isfinite(sinkhorn_plan(torch.zeros(3, 4))).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_round_moves_colliding_items_only(seed):
    sids, vectors = encoded(seed)
    count = Counter(codes_of(sids))
    codes = sinkhorn(sids.codes, sids.codebooks, vectors, rounds=1)
    alone = [i for i, w in enumerate(codes_of(sids)) if count[w] == 1]
    assert torch.equal(codes[alone], sids.codes[alone]) and not torch.equal(codes, sids.codes)
    assert torch.equal(sinkhorn(sids.codes, sids.codebooks, vectors, rounds=0), sids.codes)


@pytest.mark.parametrize("seed", range(4))
def test_rounds_leave_fewer_collisions(seed):
    sids, vectors = encoded(seed, sizes=(4, 3, 32))
    assert shared(sids.resolve("sinkhorn", vectors)) < shared(sids) / 3


def test_sinkhorn_cannot_part_equal_vectors_and_says_so():
    sids, vectors = encoded(0, n=20)
    sids, vectors = SemanticIds(sids.codes.repeat(2, 1), sids.codebooks), vectors.repeat(2, 1)
    resolved = sids.resolve("sinkhorn", vectors)
    assert resolved.quality["unresolved"] == shared(resolved) > 0 and "still share a semantic ID" in repr(resolved)
    assert resolved.summary()["collision_share"] == pytest.approx(resolved.quality["unresolved"] / 40)


# New items


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_existing_codes_stay_and_new_ones_are_alone_where_they_can_be(policy, seed):
    sids, vectors = encoded(seed)
    later = encoded(seed + 100, n=30)[1]
    resolved = sids.resolve(policy, vectors)
    grown = resolved.add_items(later)
    assert (
        torch.equal(grown.codes[:80], resolved.codes) and grown.n_items == 110 and grown.policy == policy and grown.quality["added"] == 30
    )
    assert torch.equal(grown.codes[80:, :2], resolved.assign(later, levels=2))
    assert grown.quality.get("unresolved", shared(grown)) == shared(grown)
    if policy == "none":
        assert torch.equal(grown.codes[80:], sids.assign(later))
    if policy == "extra_level":
        assert shared(grown) == 0 and torch.equal(grown.codes[80:, :3], sids.assign(later))
    if policy in REASSIGN:
        for prefix in {w[:-1] for w in codes_of(grown)[80:]}:
            old, new = ([w[-1] for w in part if w[:-1] == prefix] for part in (codes_of(grown)[:80], codes_of(grown)[80:]))
            free = 12 - len(set(old))
            assert len(set(new) - set(old)) == min(free, len(new))
        assert grown.quality["added_moved"] == (grown.codes[80:] != sids.assign(later)).any(1).sum()


@pytest.mark.parametrize("seed", range(6))
def test_a_new_item_takes_the_nearest_free_code(seed):
    sids, vectors = encoded(seed, n=12, sizes=(1, 20))
    resolved = sids.resolve("hungarian", vectors)
    later = vectors[seed : seed + 1] + 0.01
    cost = (later - resolved.codebooks[0][0] - resolved.codebooks[1]).square().sum(1)
    cost[resolved.codes[:, 1]] = torch.inf
    grown = resolved.add_items(later)
    assert grown.codes[-1].tolist() == [0, cost.argmin().item()]
    nearest = sids.assign(later)[0, 1].item()
    if nearest in resolved.codes[:, 1]:
        assert grown.quality["added_moved_max"] > 0
    else:
        assert grown.quality["added_moved"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_new_items_are_matched_in_any_order(seed):
    sids, vectors = encoded(seed)
    resolved, later = sids.resolve("hungarian", vectors), encoded(seed + 100, n=30)[1]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(resolved.add_items(later[order]).codes[80:], resolved.add_items(later).codes[80:][order])


def test_extra_level_counts_on_and_grows():
    sids, vectors = encoded(0)
    resolved = sids.resolve("extra_level")
    size, most = resolved.level_sizes[-1], Counter(codes_of(sids)).most_common(1)[0][0]
    twin = sids.items_of(most)[0]
    grown = resolved.add_items(vectors[[twin, twin]])
    assert grown.codes[80:, 3].tolist() == [size, size + 1] and grown.level_sizes[-1] == size + 2
    assert grown.quality["added_tokens"] == 2 and grown.token_names[: resolved.n_tokens] == resolved.token_names
    again = grown.add_items(vectors[[twin]])
    assert again.codes[-1, 3] == size + 2 and again.quality["added"] == 3 and again.quality["added_tokens"] == 3 and shared(again) == 0


def test_extra_level_without_a_level_takes_free_codes():
    books = [torch.tensor([[0.0, 0]]), torch.tensor([[0.0, 0], [1, 0], [5, 0]])]
    resolved = SemanticIds([[0, 0], [0, 2]], books).resolve("extra_level")
    grown = resolved.add_items(torch.tensor([[0.1, 0]]))
    assert resolved.levels == grown.levels == 2 and grown.codes[-1].tolist() == [0, 1]


def test_new_items_of_a_full_prefix_share_and_are_counted():
    books = [torch.zeros(1, 2), torch.eye(2)]
    resolved = SemanticIds([[0, 0], [0, 1]], books).resolve("hungarian")
    grown = resolved.add_items(torch.tensor([[0.9, 0], [0.0, 0.8]]))
    assert (
        grown.codes[2:].tolist() == [[0, 0], [0, 1]]
        and grown.quality["unresolved"] == 4
        and "4 items still share a semantic ID" in repr(grown)
    )


def test_no_new_items():
    sids, vectors = encoded(0)
    for policy in POLICIES:
        resolved = sids.resolve(policy, vectors)
        assert resolved.add_items(vectors[:0]).content_hash == resolved.content_hash


def test_codes_from_disk_take_new_items(tmp_path):
    sids, vectors = encoded(0)
    for policy in POLICIES:
        resolved = sids.resolve(policy, vectors)
        again = SemanticIds.load(resolved.save(tmp_path / policy))
        assert again.add_items(vectors[:5] + 0.1).content_hash == resolved.add_items(vectors[:5] + 0.1).content_hash
