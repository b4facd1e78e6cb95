"""Metrics against brute force and scikit-learn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from gti_nb.core import GTIError
from gti_nb.evaluate.ranking import MEASURES, evaluate_queries, evaluate_ranking, metric_columns, metrics, rank_by_score


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    users, n_items = 40, 30
    ranked = np.stack([rng.permutation(n_items) for _ in range(users)])
    targets = rng.integers(n_items, size=users)
    frame = evaluate_ranking(torch.tensor(ranked), torch.tensor(targets), ks=(1, 5, 10, 20))
    scores = np.empty((users, n_items))
    for row, order in zip(scores, ranked, strict=True):
        row[order] = -np.arange(n_items)
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
    for row, target, rank, hit, gain in zip(ranked, targets, frame["rank"], frame["recall@3"], frame["ndcg@3"], strict=True):
        where = np.flatnonzero(row == target)
        if target < 0 or not len(where):
            assert np.isnan(rank) and hit == gain == 0
        else:
            before = len(set(row[: where[0]]) - {-1})
            assert rank == before + 1 and hit == (before < 3) and gain == pytest.approx((before < 3) * np.log(2) / np.log(before + 2))


def brute(items, grades, k):
    "Every measure of one list by its definition: grades is item -> grade, and items below 0 in it are out of the catalogue."
    listed = []
    for i in items:
        if i >= 0 and i not in listed:
            listed.append(i)
    hits = [i in grades for i in listed[:k]]
    gain = sum(grades[i] / np.log2(place + 2) for place, i in enumerate(listed[:k]) if i in grades)
    best = sum(g / np.log2(place + 2) for place, g in enumerate(sorted(grades.values(), reverse=True)[:k]))
    return {
        "recall": sum(hits) / len(grades),
        "hit": float(any(hits)),
        "precision": sum(hits) / k,
        "mrr": 1 / (hits.index(True) + 1) if any(hits) else 0.0,
        "ndcg": gain / best,
    }


@pytest.mark.parametrize("seed", range(8))
def test_every_measure_is_its_definition_and_never_above_one(seed):
    "Lists with repeats and gaps, answers named twice, more answers than places, answers out of the catalogue."
    rng = np.random.default_rng(seed)
    n, width, ks = 50, 8, (1, 3, 8)
    ranked = rng.integers(-1, 9, size=(n, width))
    relevant = [rng.integers(-1, 12, size=rng.integers(1, 15)).tolist() for _ in range(n)]
    grades = [rng.integers(1, 4, size=len(r)).astype(float).tolist() for r in relevant]
    frame = evaluate_queries(ranked, relevant, grades, ks=ks, measures=list(MEASURES), thresholds={"good": 3, "any": 1})
    assert frame[metric_columns(frame)].to_numpy().min() >= 0 and frame[metric_columns(frame)].to_numpy().max() <= 1
    for row, (items, wanted, marks) in enumerate(zip(ranked.tolist(), relevant, grades, strict=True)):
        best = {}
        for place, (item, mark) in enumerate(zip(wanted, marks, strict=True)):
            item = item if item >= 0 else -1 - place  # each unknown item is one of its own
            best[item] = max(mark, best.get(item, 0))
        for k in ks:
            for name, value in brute(items, best, k).items():
                assert frame.loc[row, f"{name}@{k}"] == pytest.approx(value), (row, name, k)
            good = {i: g for i, g in best.items() if g >= 3}
            assert (
                frame.loc[row, f"precision[good]@{k}"] == pytest.approx(brute(items, good, k)["precision"] if good else 0)
                and frame.loc[row, f"precision[any]@{k}"] == frame.loc[row, f"precision@{k}"]
            )
        assert frame.loc[row, "relevant"] == len(best)


@pytest.mark.parametrize("seed", range(5))
def test_graded_ndcg_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    n, n_items = 30, 25
    scores, grades = rng.normal(size=(n, n_items)), rng.integers(0, 4, size=(n, n_items)) * (rng.random((n, n_items)) < 0.4)
    grades[:, 0] += 1  # every query has an answer
    relevant = [np.flatnonzero(g) for g in grades]
    marks = [g[r] for g, r in zip(grades, relevant, strict=True)]
    frame = evaluate_queries(rank_by_score(torch.tensor(scores)), relevant, marks, ks=(1, 5, 10, 25))
    for k in (1, 5, 10, 25):
        for row in range(n):
            assert frame.loc[row, f"ndcg@{k}"] == pytest.approx(ndcg_score(grades[row : row + 1], scores[row : row + 1], k=k))


def test_grade_zero_and_all_of_one_grade():
    ranked = [[3, 1, 2]]
    assert evaluate_queries(ranked, [[1, 3]], [[0, 2]], ks=(3,)).equals(evaluate_queries(ranked, [[3]], [[2]], ks=(3,)))
    same = evaluate_queries(ranked, [[1, 3]], [[7, 7]], ks=(3,))
    assert same["ndcg@3"][0] == 1 == same["recall@3"][0] and same.equals(evaluate_queries(ranked, [[3, 1]], ks=(3,)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: evaluate_queries([[1]], [[1], [2]], ks=(1,)), "got 2 and no lists for 1 ranked lists"),
        (lambda: evaluate_queries([[1]], [[1]], [[1, 2]], ks=(1,)), "grades\\[0\\]: got"),
        (lambda: evaluate_queries([[1]], [[1]], [[-1]], ks=(1,)), "0 or more"),
        (lambda: evaluate_queries([[1]], [[1]], [[0]], ks=(1,)), "no item with a grade above 0"),
        (lambda: evaluate_queries([[1]], [[1.5]], ks=(1,)), "relevant\\[0\\]: got float64"),
        (lambda: evaluate_queries([[1]], [[1]], ks=(1,), thresholds={"all": 0}), "thresholds: got 0 for 'all'"),
        (lambda: evaluate_queries([[1]], [[1]], ks=(1,), queries=["a", "b"]), "got 2 names for 1 lists"),
        (lambda: evaluate_ranking([[1, 2]], [1], ks=(0,)), "ks: got 0, allowed: 1 to 2"),
        (lambda: evaluate_ranking([[1, 2]], [1], ks=(1.5,)), "ks: got"),
        (lambda: evaluate_ranking([[1, 2]], [1], ks=()), "ks: got no list length"),
        (lambda: evaluate_ranking([[1, 2]], [1], ks=(1,), measures=()), "measures: got none"),
        (lambda: evaluate_ranking([1, 2], [1, 2], ks=(1,)), "expected \\[n, W\\]"),
        (lambda: rank_by_score([1.0, 2.0]), "expected numbers \\[n, n_items\\]"),
        (lambda: rank_by_score([[1.0, 2.0]], width=3), "width: got 3"),
    ],
)
def test_what_cannot_be_scored_is_refused(make, message):
    with pytest.raises(GTIError, match=message):
        make()


def test_full_ranking_breaks_ties_by_item():
    scores = np.random.default_rng(0).integers(0, 3, (50, 20)).astype(np.float32)
    scores[:, 7] = -np.inf
    for row, order in zip(scores, rank_by_score(scores), strict=True):
        assert order.tolist() == [*sorted((i for i in range(20) if i != 7), key=lambda i: (-row[i], i)), -1]
    assert np.array_equal(rank_by_score(scores, width=5), rank_by_score(scores)[:, :5])


def test_repeated_user_names_are_refused():
    with pytest.raises(GTIError, match="'a' occurs more than once"):
        evaluate_ranking([[1], [2]], [1, 2], ks=(1,), users=["a", "a"])


def test_list_lengths_are_numbers():
    with pytest.raises(GTIError, match="ks: got True, expected a whole number"):
        evaluate_ranking(np.array([[1, 2]]), [1], ks=[True])
