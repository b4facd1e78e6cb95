"""Slices of users against a loop, and through parquet."""

import numpy as np
import pandas as pd
import pytest

from gti_nb.data.splits import Split
from gti_nb.evaluate.ranking import evaluate_ranking
from gti_nb.evaluate.slices import item_popularity, slice_metrics, user_slices

TINY = Split(
    train=[np.array([0, 1, 2]), np.array([1, 2, 3]), np.array([1, 0])], valid=np.array([3, 4, 2]), test=np.array([4, 0, 5]), n_items=6
)


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
