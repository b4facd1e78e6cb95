"""Semantic IDs in ranked lists against a loop, faults of lists, and frames through parquet."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from gti_nb.core import GTIError
from gti_nb.evaluate.ranking import MEASURES, evaluate_queries, evaluate_ranking, metric_columns, metrics
from gti_nb.evaluate.sids import evaluate_sids, list_report
from gti_nb.sid.codes import SemanticIds


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
    "With semantic IDs shared by items, repeats, gaps and, in bare codes, semantic IDs of no item."
    rng = np.random.default_rng(seed)
    n, width, levels, ks = 30, 7, 3, (1, 4, 7)
    codes = rng.integers(0, 3, (15, levels))
    codes[5:8] = codes[4]
    sids = SemanticIds(codes)
    items, targets = rng.integers(-1, 15, (n, width)), rng.integers(-1, 15, n)
    written = np.where(items[..., None] >= 0, codes[items], -1)
    if kind == "codes":
        written = np.where((rng.random((n, width)) < 0.3)[..., None], rng.integers(0, 4, written.shape), written)
    beams = SimpleNamespace(items=torch.tensor(items), codes=torch.tensor(written))
    lists = {"items": items, "beams": beams, "codes": torch.tensor(written)}[kind]
    frame, report = evaluate_sids(lists, targets, sids, ks=ks), list_report(lists, sids, ks=ks)
    known = set(map(tuple, codes.tolist()))
    shown: dict[int, set] = {k: set() for k in ks}
    places = invalid = repeated = 0
    for row in range(n):
        entries = [tuple(w) for w in written[row].tolist()]
        distinct = list(dict.fromkeys(w for w in entries if w != (-1,) * levels))
        truth = tuple(codes[targets[row]].tolist()) if targets[row] >= 0 else None
        assert frame.loc[row, "n_sids"] == len(distinct)
        for k in ks:
            for level in range(levels):
                right = truth is not None and any(w[: level + 1] == truth[: level + 1] for w in distinct[:k])
                assert frame.loc[row, f"level{level + 1}@{k}"] == right
            assert frame.loc[row, f"sid_recall@{k}"] == frame.loc[row, f"level{levels}@{k}"]
            assert frame.loc[row, f"sid_ndcg@{k}"] == pytest.approx(1 / np.log2(2 + distinct.index(truth)) if truth in distinct[:k] else 0)
            if kind == "codes":
                shown[k] |= {i for i, w in enumerate(map(tuple, codes.tolist())) if w in entries[:k]}
            else:
                shown[k] |= set(items[row, :k].tolist()) - {-1}
        mine = entries if kind == "codes" else items[row].tolist()
        filled = [x for x, w in zip(mine, entries, strict=True) if w != (-1,) * levels]
        places += len(filled)
        repeated += len(filled) - len(set(filled))
        invalid += sum(w not in known for w in entries if w != (-1,) * levels)
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


def test_faults_of_lists_are_counted():
    sids = SemanticIds([[0, 0], [0, 1], [1, 0]])
    fine = list_report([[0, 1], [2, -1]], sids, ks=(1, 2))
    assert [fine[k] for k in ("places", "invalid", "duplicates", "coverage@1", "coverage@2")] == [3, 0, 0, 2 / 3, 1]
    assert list_report([[0, 3], [-2, 1]], sids, ks=(1,))["invalid"] == 2
    mixed = SimpleNamespace(items=np.array([[0, -1]]), codes=np.array([[[0, 0], [5, 5]]]))
    assert list_report(mixed, sids, ks=(1,))["invalid"] == 1  # codes of no item in a place without an item
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
