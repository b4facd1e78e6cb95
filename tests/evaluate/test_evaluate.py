"""Metrics against brute force and scikit-learn, semantic IDs, slices, parquet, the baselines by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import ndcg_score, top_k_accuracy_score

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.data.splits import Split
from gti_nb.evaluate.baselines import popularity, transitions
from gti_nb.evaluate.model import evaluate_model, query_set, user_set
from gti_nb.evaluate.ranking import MEASURES, evaluate_queries, evaluate_ranking, metric_columns, metrics, rank_by_score
from gti_nb.evaluate.sids import evaluate_sids, list_report
from gti_nb.evaluate.slices import item_popularity, slice_metrics, user_slices
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.tasks import make_tasks
from gti_nb.sft.validation import validation_loss
from gti_nb.sid.codes import SemanticIds


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    users, n_items = 40, 30
    ranked = np.stack([rng.permutation(n_items) for _ in range(users)])
    targets = rng.integers(n_items, size=users)
    frame = evaluate_ranking(torch.tensor(ranked), torch.tensor(targets), ks=(1, 5, 10, 20))
    scores = np.empty((users, n_items))
    for row, order in zip(scores, ranked):
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
    for row, target, rank, hit, gain in zip(ranked, targets, frame["rank"], frame["recall@3"], frame["ndcg@3"]):
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
    for row, (items, wanted, marks) in enumerate(zip(ranked.tolist(), relevant, grades)):
        best = {}
        for place, (item, mark) in enumerate(zip(wanted, marks)):
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
    frame = evaluate_queries(rank_by_score(torch.tensor(scores)), relevant, [g[r] for g, r in zip(grades, relevant)], ks=(1, 5, 10, 25))
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
        (lambda: evaluate_ranking([[1, 2]], [1], ks=(0,)), "ks: got \\[0\\]"),
        (lambda: evaluate_ranking([[1, 2]], [1], ks=(1.5,)), "ks: got"),
        (lambda: evaluate_ranking([[1, 2]], [1], ks=()), "ks: got"),
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
    for row, order in zip(scores, rank_by_score(scores)):
        assert order.tolist() == [*sorted((i for i in range(20) if i != 7), key=lambda i: (-row[i], i)), -1]
    assert np.array_equal(rank_by_score(scores, width=5), rank_by_score(scores)[:, :5])


@pytest.mark.parametrize("users", [None, [f"user {i}" for i in range(40)], np.arange(40) * 3 + 1, pd.Series(range(40)).astype(str)])
def test_frames_survive_parquet_bit_by_bit(tmp_path, users):
    rng = np.random.default_rng(0)
    sids, ranked, targets = SemanticIds(rng.integers(0, 3, (12, 2))), rng.integers(-1, 12, (40, 6)), rng.integers(-1, 12, 40)
    items = evaluate_ranking(ranked, targets, ks=(1, 6), users=users, measures=list(MEASURES))
    frames = {
        "items": items,
        "both": items.join(evaluate_sids(ranked, targets, sids, ks=(1, 6), users=users)),
        "queries": evaluate_queries(ranked, [[t, 3] for t in targets], ks=(6,), queries=users, thresholds={"good+maybe": 1}),
    }
    for name, frame in frames.items():
        frame.to_parquet(tmp_path / f"{name}.parquet")
        back = pd.read_parquet(tmp_path / f"{name}.parquet")
        pd.testing.assert_frame_equal(back, frame, check_exact=True)
        assert metrics(back) == metrics(frame)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["items", "beams", "codes"])
def test_semantic_ids_in_lists_against_a_loop(seed, kind):
    "With words shared by items, repeats, gaps and, of bare codes, words of no item."
    rng = np.random.default_rng(seed)
    n, width, levels, ks = 30, 7, 3, (1, 4, 7)
    codes = rng.integers(0, 3, (15, levels))
    codes[5:8] = codes[4]
    sids = SemanticIds(codes)
    items, targets = rng.integers(-1, 15, (n, width)), rng.integers(-1, 15, n)
    words = np.where(items[..., None] >= 0, codes[items], -1)
    if kind == "codes":
        words = np.where((rng.random((n, width)) < 0.3)[..., None], rng.integers(0, 4, words.shape), words)
    lists = {"items": items, "beams": SimpleNamespace(items=torch.tensor(items), codes=torch.tensor(words)), "codes": torch.tensor(words)}[
        kind
    ]
    frame, report = evaluate_sids(lists, targets, sids, ks=ks), list_report(lists, sids, ks=ks)
    known, invalid, repeated, places, shown = set(map(tuple, codes.tolist())), 0, 0, 0, {k: set() for k in ks}
    for row in range(n):
        entries = [tuple(w) for w in words[row].tolist()]
        distinct = list(dict.fromkeys(w for w in entries if w != (-1,) * levels))
        truth = tuple(codes[targets[row]].tolist()) if targets[row] >= 0 else None
        assert frame.loc[row, "words"] == len(distinct)
        for k in ks:
            for level in range(levels):
                right = truth is not None and any(w[: level + 1] == truth[: level + 1] for w in distinct[:k])
                assert frame.loc[row, f"level{level + 1}@{k}"] == right
            assert frame.loc[row, f"sid_recall@{k}"] == frame.loc[row, f"level{levels}@{k}"]
            assert frame.loc[row, f"sid_ndcg@{k}"] == pytest.approx(1 / np.log2(2 + distinct.index(truth)) if truth in distinct[:k] else 0)
            shown[k] |= (
                {i for i, w in enumerate(map(tuple, codes.tolist())) if w in entries[:k]}
                if kind == "codes"
                else set(items[row, :k].tolist()) - {-1}
            )
        mine = entries if kind == "codes" else items[row].tolist()
        filled = [x for x, w in zip(mine, entries) if w != (-1,) * levels]
        places, repeated, invalid = (
            places + len(filled),
            repeated + len(filled) - len(set(filled)),
            invalid + sum(w not in known for w in entries if w != (-1,) * levels),
        )
    assert [report[k] for k in ("lists", "places", "invalid", "duplicates")] == [n, places, invalid, repeated]
    assert (invalid > 0) == (kind == "codes") and repeated > 0 and report["duplicate_rate"] == repeated / places
    for k in ks:
        assert report[f"coverage@{k}"] == pytest.approx(len(shown[k]) / 15)
    both = evaluate_ranking(items, targets, ks=ks).join(frame)
    if kind != "codes":
        for k in ks:
            assert (both[f"sid_recall@{k}"] >= both[f"recall@{k}"]).all() and (both[f"sid_ndcg@{k}"] >= both[f"ndcg@{k}"]).all()
    for k in ks:
        for level in range(1, levels):
            assert (frame[f"level{level}@{k}"] >= frame[f"level{level + 1}@{k}"]).all()
    assert frame[metric_columns(frame)].to_numpy().max() <= 1


def test_faults_of_lists_are_counted_not_assumed():
    sids = SemanticIds([[0, 0], [0, 1], [1, 0]])
    fine = list_report([[0, 1], [2, -1]], sids, ks=(1, 2))
    assert [fine[k] for k in ("places", "invalid", "duplicates", "coverage@1", "coverage@2")] == [3, 0, 0, 2 / 3, 1]
    assert list_report([[0, 3], [-2, 1]], sids, ks=(1,))["invalid"] == 2
    mixed = SimpleNamespace(items=np.array([[0, -1]]), codes=np.array([[[0, 0], [5, 5]]]))
    assert list_report(mixed, sids, ks=(1,))["invalid"] == 1  # a word of no item, though its item is left empty
    assert list_report(np.full((2, 3), -1), sids, ks=(3,)) == {
        "lists": 2,
        "places": 0,
        "invalid": 0,
        "duplicates": 0,
        "invalid_rate": 0.0,
        "duplicate_rate": 0.0,
        "coverage@3": 0.0,
    }
    with pytest.raises(GTIError, match="or codes"):
        list_report(np.zeros((2, 3, 5), int), sids, ks=(1,))


@pytest.mark.parametrize("seed", range(5))
def test_slices_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    train = [rng.choice(30, size=rng.integers(0, 12), p=np.arange(1, 31)[::-1] / 465) for _ in range(60)]
    split = Split(train=train, valid=rng.integers(-1, 30, 60), test=rng.integers(-1, 30, 60), n_items=30)
    counts = [sum(int((t == i).sum()) for t in train) for i in range(30)]
    for item, kind in enumerate(item_popularity(split)):
        above = sum(c for c in counts if c > counts[item]) / sum(counts)
        assert kind == ("cold" if not counts[item] else "head" if above < 1 / 3 else "middle" if above < 2 / 3 else "tail")
    for which, targets in (("valid", split.valid), ("test", split.test)):
        slices = user_slices(split, which, lengths=(0, 3, 6))
        assert slices.index.tolist() == np.flatnonzero(targets >= 0).tolist()
        assert ((slices.popularity == "cold") == split.cold(which)[slices.index]).all()
        for user, name in slices.history.items():
            size = len(split.past(user, which))
            assert name == ("0" if size == 0 else "1-3" if size <= 3 else "4-6" if size <= 6 else "7+")
        frame = evaluate_ranking(rng.integers(0, 30, (len(slices), 5)), targets[slices.index], ks=(5,), users=slices.index)
        table = slice_metrics(frame, slices)
        for (by, name), row in table.iterrows():
            mine = frame[slices[by] == name]
            assert row["users"] == len(mine) and (
                np.isnan(row["recall@5"]) if mine.empty else row["recall@5"] == pytest.approx(mine["recall@5"].mean())
            )
    assert user_slices(split, users=np.flatnonzero(split.test < 0)).popularity.eq("cold").all()


def test_slices_survive_parquet_with_the_metrics(tmp_path):
    slices = user_slices(TINY)
    frame = evaluate_ranking([[4], [0], [1]], TINY.test, ks=(1,)).join(slices)
    frame.to_parquet(tmp_path / "users.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "users.parquet"), frame, check_exact=True)
    assert slice_metrics(frame, frame[["popularity"]]).loc[("popularity", "cold"), "users"] == 2


def test_evaluate_refuses_users_twice():
    with pytest.raises(GTIError, match="'a' is there more than once"):
        evaluate_ranking([[1], [2]], [1, 2], ks=(1,), users=["a", "a"])


TINY = Split(
    train=[np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([1, 0])], valid=np.array([3, 4, 2]), test=np.array([4, 0, 5]), n_items=6
)


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


def test_searches_are_scored_by_grade_too():
    wishes = load_queries("toy")
    sids = SemanticIds(torch.tensor([[i // 8, i % 8] for i in range(wishes.n_items)]))
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    initialize(extended, "normal_matched")
    asked = query_set(extended, wishes, n=6)
    per_query = evaluate_model(extended, asked, beams=10, ks=[1, 10], thresholds={"any": 0.5, "none": 1e9})[1]
    assert (per_query["precision[any]@10"] == per_query["precision@10"]).all() and not per_query["precision[none]@10"].any()
    split = load_dataset("toy").leave_one_out()
    with pytest.raises(GTIError, match="thresholds: .*belong to queries"):
        evaluate_model(extended, user_set(extended, split, n=3), thresholds={"any": 1})


def test_the_validation_loss_is_the_mean_over_all_targets():
    films = load_dataset("toy")
    extended = ExtendedModel.extend(*load_base("tiny-llama"), SemanticIds(torch.tensor([[i // 8, i % 8] for i in range(40)])))
    initialize(extended, "normal_matched")
    (task,) = make_tasks("retrieval", extended, films, films.leave_one_out())
    examples = task.examples(np.random.default_rng(0))[:7]
    assert validation_loss(extended, examples, batch_size=3)()["loss"] == pytest.approx(SFTLoss(extended)(examples)[0].item(), abs=1e-5)


def test_list_lengths_are_numbers():
    with pytest.raises(GTIError, match="ks: got .True"):
        evaluate_ranking(np.array([[1, 2]]), [1], ks=[True])
