"""Metrics against an independent implementation, the comparison against known answers, the baselines by hand."""
from types import SimpleNamespace
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control, ttest_rel
from sklearn.metrics import ndcg_score, top_k_accuracy_score
from gti_nb.core import GTIError
from gti_nb.evaluate.baselines import popularity, transitions
from gti_nb.evaluate.ranking import compare, evaluate_ranking, holm, metrics
from gti_nb.splits import Split


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    users, n_items = 40, 30
    ranked = np.stack([rng.permutation(n_items) for _ in range(users)])
    targets = rng.integers(n_items, size=users)
    frame = evaluate_ranking(torch.tensor(ranked), torch.tensor(targets), ks=(1, 5, 10, 20))
    scores = np.empty((users, n_items))
    for row, order in zip(scores, ranked): row[order] = -np.arange(n_items)
    relevant = np.eye(n_items)[targets]
    for k in (1, 5, 10, 20):
        assert metrics(frame)[f"recall@{k}"] == pytest.approx(top_k_accuracy_score(targets, scores, k=k, labels=range(n_items)))
        assert metrics(frame)[f"ndcg@{k}"] == pytest.approx(ndcg_score(relevant, scores, k=k))
    assert metrics(frame)["users"] == users


@pytest.mark.parametrize("seed", range(5))
def test_short_lists_duplicates_and_misses(seed):
    "Lists with repeats and gaps score like the clean lists a set-based count gives."
    rng = np.random.default_rng(seed)
    ranked, targets = rng.integers(-1, 8, size=(60, 12)), rng.integers(-1, 10, size=60)
    frame = evaluate_ranking(SimpleNamespace(items=ranked), targets, ks=(3,))
    for row, target, rank, hit, gain in zip(ranked, targets, frame["rank"], frame["recall@3"], frame["ndcg@3"]):
        where = np.flatnonzero(row == target)
        if target < 0 or not len(where): assert np.isnan(rank) and hit == gain == 0
        else:
            before = len(set(row[:where[0]]) - {-1})
            assert rank == before + 1 and hit == (before < 3) and gain == pytest.approx((before < 3) * np.log(2) / np.log(before + 2))


def frame_of(values): return pd.DataFrame({"recall@10": np.asarray(values, float)})


def test_compare_has_the_stated_coverage():
    "The 95 % interval holds the true gain about 95 times in 100."
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        base = rng.random(300) < 0.3
        arm = np.where(rng.random(300) < 0.5, base, rng.random(300) < 0.42)  # its mean is .36: a gain of 20 %
        row = compare({"mean": frame_of(base), "gti": frame_of(arm)}, resamples=300).loc[("recall@10", "gti")]
        inside += row["low"] <= 0.2 <= row["high"]
    assert 88 <= inside <= 99


def test_p_value_is_near_the_paired_t_test_on_smooth_data():
    rng = np.random.default_rng(1)
    base = rng.random(200)
    for shift in (0.0, 0.02, 0.05):
        arm = base + shift + 0.2 * rng.normal(size=200)
        p = compare({"mean": frame_of(base), "gti": frame_of(arm)}, resamples=9999).loc[("recall@10", "gti"), "p"]
        assert abs(p - ttest_rel(arm, base).pvalue) < 0.02


def test_false_alarms_are_rare():
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        table = compare({name: frame_of(rng.random(100) < 0.3) for name in ("mean", "a", "b", "c")}, resamples=400)
        alarms += (table["p_holm"] < 0.05).any()
    assert alarms <= 8  # 3 expected


def test_holm_by_hand_and_bounds():
    p = np.random.default_rng(0).random(20) ** 3
    adjusted, order = holm(p), np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all() and (adjusted >= p).all() and adjusted.max() <= 1
    assert (adjusted <= np.minimum(p * 20, 1)).all() and (adjusted >= false_discovery_control(p) - 1e-12).all()  # between Benjamini-Hochberg and Bonferroni
    assert holm([0.2]) == [0.2] and holm([]).size == 0


def test_seeds_are_averaged_within_users():
    rng = np.random.default_rng(2)
    a, b, base = (frame_of(rng.random(50) < p) for p in (0.4, 0.5, 0.3))
    many, one = compare({"mean": base, "gti": [a, b]}), compare({"mean": base, "gti": (a + b) / 2})
    assert many.loc[("recall@10", "gti"), "seeds"] == 2 and many.loc[("recall@10", "mean"), "seeds"] == 1
    assert many.drop(columns="seeds").equals(one.drop(columns="seeds"))
    assert compare({"mean": base, "gti": [a, a, a]})["users"].eq(50).all()


def test_baseline_that_never_hits_has_no_relative_gain():
    row = compare({"mean": frame_of(np.zeros(30)), "gti": frame_of(np.arange(30) < 9)}).loc[("recall@10", "gti")]
    assert row[["gain", "low", "high"]].isna().all() and row["p"] < 0.05


def test_compare_refuses_other_columns():
    with pytest.raises(GTIError, match="same ks"): compare({"mean": frame_of([1]), "gti": frame_of([1]).rename(columns={"recall@10": "recall@5"})})


def test_evaluate_refuses_users_twice():
    with pytest.raises(GTIError, match="'a' is there more than once"): evaluate_ranking([[1], [2]], [1, 2], ks=(1,), users=["a", "a"])


TINY = Split(train=[np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([1, 0])], valid=np.array([3, 4, 2]), test=np.array([4, 0, 5]), n_items=6)


def test_popularity_by_hand():
    # training counts of items 0..5: 2 3 2 1 0 0; the first user has seen 0 1 2, and 3 before the test item
    assert popularity(TINY, "valid", width=3)[0].tolist() == [3, 4, 5]
    assert popularity(TINY, "test", width=3)[0].tolist() == [4, 5, -1]
    assert popularity(TINY, "valid", width=2)[2].tolist() == [2, 3]


def test_transitions_by_hand():
    # neighbours, either order: 0-1 twice, 1-2 twice, 2-3 once; the third user ends with 0, whose only neighbour he has seen
    assert transitions(TINY, "valid", width=3, recent=1)[2].tolist() == [2, 3, 4]
    assert transitions(TINY, "valid", width=1, recent=1)[0].tolist() == [3]
    assert transitions(TINY, "valid", width=4, recent=1)[1].tolist() == [0, 4, 5, -1]
    # before the test item the third user has also 2, so its neighbour 3 leads
    assert transitions(TINY, "test", width=1)[2].tolist() == [3]


def test_baselines_never_read_what_is_held_out():
    changed = Split(**{**vars(TINY), "test": np.array([5, 5, 4])})
    for baseline in (popularity, transitions):
        assert np.array_equal(baseline(TINY, "test"), baseline(changed, "test"))
        later = Split(**{**vars(TINY), "valid": np.array([5, 5, 4])})
        assert np.array_equal(baseline(TINY, "valid"), baseline(later, "valid"))
