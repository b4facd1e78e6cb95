"The report card against slow reference computations, and on unusual input."

import json
from collections import Counter

import numpy as np
import pytest
import torch
from sid.test_collisions import encoded

from gti_nb.core import GTIError
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.imported import random_sids
from gti_nb.sid.report import conditional_entropies, gini, level_report, neighbour_overlap, prefix_purity, report_card

KINDS = ["Drama", "Comedy", "War, Drama", "Comedy, Romance", "", "Horror"]


def kinds(n: int, seed: int = 0) -> list[str]:
    return np.random.default_rng(seed).choice(KINDS, n).tolist()


@pytest.mark.parametrize("counts", [[1], [4, 4], [0, 0, 0, 7], [1, 2, 3, 4, 5], [9, 0, 2, 2, 7, 1]])
def test_gini_is_half_the_relative_mean_difference(counts):
    x = np.array(counts, float)
    assert gini(counts) == pytest.approx(np.abs(x[:, None] - x).mean() / (2 * x.mean()))


@pytest.mark.parametrize("seed", range(3))
def test_entropies_against_dictionaries(seed):
    sids, _ = encoded(seed)
    ids = [tuple(w) for w in sids.codes.tolist()]
    for level, found in enumerate(conditional_entropies(sids.codes)):
        by_hand = 0.0
        for prefix, n in Counter(w[:level] for w in ids).items():
            p = np.array(list(Counter(w[level] for w in ids if w[:level] == prefix).values())) / n
            by_hand -= n / len(ids) * (p * np.log2(p)).sum()
        assert found == pytest.approx(by_hand)


@pytest.mark.parametrize("seed", range(3))
def test_purity_against_counters(seed):
    sids, _ = encoded(seed)
    labels = [set(k.split(", ")) - {""} for k in kinds(80, seed)]
    frame = prefix_purity(sids, kinds(80, seed), seed=seed)
    for level in range(3):
        most = 0
        prefixes = [tuple(w[: level + 1]) for w in sids.codes.tolist()]
        for prefix in set(prefixes):
            count = Counter(label for other, own in zip(prefixes, labels, strict=True) if other == prefix for label in own)
            most += max(count.values(), default=0)
        assert frame.purity.iloc[level] == pytest.approx(most / sum(map(bool, labels)))
    assert (frame.purity_shuffled > 0).all() and (frame.purity_lift == frame.purity - frame.purity_shuffled).all()
    assert frame.purity_lift.abs().max() < 0.15, "random categories have nothing to do with the codes"


def test_purity_of_codes_that_follow_the_categories():
    names = np.array(["Drama", "Comedy", "War", "Horror"])[np.arange(200) % 4]
    frame = prefix_purity(SemanticIds((torch.arange(200) % 4)[:, None]), names.tolist())
    assert frame.purity.item() == 1 and 0.25 < frame.purity_shuffled.item() < 0.4


def slow_overlap(sids, vectors, k, level):
    "The expected overlap when ties are broken at random, item by item."
    x, total = vectors.double().numpy(), 0
    rebuilt = sids.reconstruct(level).double().numpy() if sids.codebooks[0].shape[1] else np.zeros((len(x), 1))
    ids = sids.codes[:, :level].tolist()

    def common(a, b):
        return next((place for place in range(level) if a[place] != b[place]), level)

    def chances(keys):  # of each item to be among the k smallest
        last = sorted(keys.values())[k - 1]
        closer, tied = [j for j in keys if keys[j] < last], [j for j in keys if keys[j] == last]
        return dict.fromkeys(closer, 1.0) | dict.fromkeys(tied, (k - len(closer)) / len(tied))

    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        near = chances({j: round(float(np.square(x[i] - x[j]).sum()), 6) for j in others})
        by_code = chances({j: (-common(ids[i], ids[j]), round(float(np.square(rebuilt[i] - rebuilt[j]).sum()), 6)) for j in others})
        total += sum(p * by_code.get(j, 0) for j, p in near.items())
    return total / (len(x) * k)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["plain", "extra level", "random", "twins"])
def test_neighbours_against_loops(seed, kind):
    sids, vectors = encoded(seed, n=40)
    if kind == "extra level":
        sids = sids.resolve("extra_level")
    if kind == "random":
        sids = random_sids(40, 3, 4, seed)
    if kind == "twins":
        vectors[20:] = vectors[:20]
    assert neighbour_overlap(sids, vectors, k=5) == pytest.approx(
        [slow_overlap(sids, vectors, 5, level + 1) for level in range(sids.levels)], abs=1e-6
    )


def test_neighbours_of_random_codes_are_chance():
    _, vectors = encoded(0, n=1000)
    assert neighbour_overlap(random_sids(1000), vectors)[-1] == pytest.approx(10 / 999, abs=0.01)


@pytest.mark.parametrize("sample", [2000, 30])
@pytest.mark.parametrize("policy", ["none", "hungarian"])
def test_the_card_does_not_depend_on_the_order_of_the_items(sample, policy):
    sids, vectors = encoded(0)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    cards = [
        report_card(
            SemanticIds(sids.codes[o], sids.codebooks).resolve(policy, vectors[o]), vectors[o], [kinds(80)[i] for i in o], sample=sample
        )
        for o in (torch.arange(80), order)
    ]
    assert cards[0] == pytest.approx(cards[1], nan_ok=True)


def test_seeds_change_the_sample_and_nothing_else():
    sids, vectors = encoded(0)
    cards = [report_card(sids, vectors, kinds(80), seed=seed, sample=30) for seed in (0, 0, 1)]
    assert cards[0] == cards[1]
    assert {name.rpartition("_")[0] or name for name, value in cards[0].items() if cards[2][name] != value} <= {
        "neighbours",
        "purity_shuffled",
        "purity_lift",
    }
    assert cards[0]["neighbours"] != cards[2]["neighbours"] and cards[0]["neighbours_items"] == 30


@pytest.mark.parametrize("policy", ["none", "extra_level", "sinkhorn", "hungarian"])
def test_the_card_is_flat_json_and_names_the_policy(policy):
    sids, vectors = encoded(0)
    resolved = sids.resolve(policy, vectors)
    card = report_card(resolved, vectors, kinds(80))
    assert json.loads(json.dumps(card, allow_nan=False)) == card and not any(isinstance(v, (dict, list)) for v in card.values())
    assert card["policy"] == policy and (policy == "none") == ("moved" not in card)
    assert set(resolved.report()) <= set(level_report(resolved, vectors, kinds(80)))
    ids = Counter(map(tuple, resolved.codes.tolist()))
    assert card["items_per_leaf"] == pytest.approx(80 / len(ids)) and card["items_per_leaf_max"] == max(ids.values())
    assert card["squared_error"] == pytest.approx((vectors - resolved.reconstruct()).square().sum(1).mean().item(), rel=1e-5)
    assert card["residual_energy"] == pytest.approx(resolved.residual_energy(vectors)[2])
    if policy == "extra_level":
        assert card["residual_energy_d"] is None and card["conditional_bits_d"] > 0


def test_vectors_of_another_space_keep_the_measured_error():
    "As with an RQ-VAE, whose codebooks describe latents."
    sids, vectors = encoded(0)
    sids.quality["residual_energy"] = [0.5, 0.4, 0.3]
    frame = level_report(sids, torch.cat([vectors, vectors], 1))
    assert frame.residual_energy.tolist() == [0.5, 0.4, 0.3] and "squared_error" not in frame
    assert frame.neighbours.tolist() == pytest.approx(level_report(sids, vectors).neighbours.tolist())


def test_codes_alone():
    card = report_card(random_sids(50))
    assert "neighbours" not in card and "purity_a" not in card and card["quantizer"] == "random"


@pytest.mark.parametrize("categories", [[""] * 80, [None] * 80, [", "] * 80])
def test_items_without_categories_have_no_purity(categories):
    sids, vectors = encoded(0)
    assert report_card(sids, vectors, categories)["purity_a"] is None


def test_one_item_and_equal_items():
    one = SemanticIds([[0, 0]], [torch.ones(1, 3)] * 2)
    card = report_card(one, torch.ones(1, 3), ["Drama"])
    assert card["neighbours"] is None and card["purity_a"] == 1 and card["gini_a"] == 0 and card["entropy_bits_a"] == 0
    assert report_card(SemanticIds([[0, 0]] * 5, [torch.ones(1, 3)] * 2), torch.zeros(5, 3))["neighbours"] == 1


@pytest.mark.parametrize(
    "vectors, categories, message",
    [
        (torch.zeros(3, 6), None, r"got shape \(3, 6\), expected 80 rows"),
        (torch.full((80, 6), torch.nan), None, "NaN"),
        (torch.zeros(80), None, r"got shape \(80,\)"),
        (None, ["Drama"], "got 1 for 80 items"),
    ],
)
def test_what_does_not_fit_is_refused(vectors, categories, message):
    with pytest.raises(GTIError, match=message):
        report_card(encoded(0)[0], vectors, categories)
