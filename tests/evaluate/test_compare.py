"""The comparison of arms: known answers, coverage and false alarms, with and without seeds; the committed study from its users."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, permutation_test, ttest_ind, ttest_rel

from gti_nb.core import GTIError
from gti_nb.evaluate.compare import compare, gain_table, holm
from gti_nb.evaluate.ranking import evaluate_ranking


def frame_of(values):
    return pd.DataFrame({"recall@10": np.asarray(values, float)})


def row_of(frames, **options):
    return compare(frames, **options).loc[("recall@10", "gti")]


def study(rng, seeds=(3, 3), users=200, between=0.0, shift=0.0):
    "Two arms' NDCG: users differ, arms meet each user differently, seeds are lucky or not, and the rest is chance."
    easy = rng.normal(size=users)
    return {
        name: [
            frame_of((easy + own + by + luck + rng.normal(size=users) > 1.2) / np.log2(1 + rng.integers(1, 11, size=users)))
            for luck in rng.normal(size=n) * between
        ]
        for name, n, own, by in (
            ("mean", seeds[0], 0.5 * rng.normal(size=users), 0),
            ("gti", seeds[1], 0.5 * rng.normal(size=users), shift),
        )
    }


@pytest.mark.parametrize("seeds, between", [((1, 1), 0), ((3, 3), 0), ((3, 3), 0.2), ((3, 3), 0.6), ((5, 2), 0.3), ((3, 1), 0)])
def test_false_alarms_are_about_five_in_a_hundred(seeds, between):
    "400 studies of two equal arms: at 5 % the binomial gives 11 to 29; designs in which seeds add nothing stay somewhat below."
    p = [row_of(study(np.random.default_rng(i), seeds, between=between), resamples=200)["p"] for i in range(400)]
    assert 8 <= np.sum(np.array(p) < 0.05) <= 30
    assert 150 <= np.sum(np.array(p) < 0.5) <= 250


def test_users_alone_raise_false_alarms_when_seeds_differ():
    rows = [row_of(study(np.random.default_rng(i), between=0.4), resamples=200) for i in range(150)]
    assert np.mean([r["p_users"] < 0.05 for r in rows]) > 0.3 > 0.08 > np.mean([r["p"] < 0.05 for r in rows])


@pytest.mark.parametrize("seeds, between", [((1, 1), 0), ((3, 3), 0.3), ((5, 5), 0.3)])
def test_the_interval_holds_the_true_gain(seeds, between):
    "95 times in 100; the true gain is that of the means over very many users and seeds."
    many = study(np.random.default_rng(99), (800, 800), users=2000, between=between, shift=0.15)
    true = np.mean([f.to_numpy().mean() for f in many["gti"]]) / np.mean([f.to_numpy().mean() for f in many["mean"]]) - 1
    rows = [row_of(study(np.random.default_rng(i), seeds, between=between, shift=0.15), resamples=200) for i in range(200)]
    assert 183 <= sum(r["low"] <= true <= r["high"] for r in rows) <= 199


def test_more_seeds_narrow_the_interval():

    def width(n):
        rows = [row_of(study(np.random.default_rng(i), (n, n), between=0.3), resamples=200) for i in range(20)]
        return np.median([r["high"] - r["low"] for r in rows])

    assert width(2) > 1.5 * width(4) > 1.5 * width(12)


def test_a_real_gain_is_found():
    found = [row_of(study(np.random.default_rng(i), between=0.1, shift=0.6), resamples=200) for i in range(40)]
    assert np.mean([r["p"] < 0.05 for r in found]) > 0.6 and all(r["gain"] > 0 for r in found)


@pytest.mark.parametrize("seed", range(20))
def test_seeds_only_widen_the_interval(seed):
    row = row_of(study(np.random.default_rng(seed), (2, 4), between=0.1 * (seed % 4)))
    assert row["p"] >= row["p_users"] and row["low"] <= row["gain"] <= row["high"]


@pytest.mark.parametrize("seeds, between, share", [((1, 1), 0, 1.0), ((3, 3), 0.2, 0.9)])
def test_p_and_interval_agree(seeds, between, share):
    "They come from two resamplings: they may differ where p is near 5 %, elsewhere hardly, and with one seed not at all."
    rows = [row_of(study(np.random.default_rng(i), seeds, between=between, shift=0.3), resamples=500) for i in range(80)]
    clear = [r for r in rows if not 0.03 < r["p"] < 0.08]
    assert len(clear) > 40 and np.mean([(r["p"] < 0.05) == (r["low"] > 0 or r["high"] < 0) for r in clear]) >= share


def test_one_seed_is_the_permutation_test_over_users():
    rng = np.random.default_rng(1)
    base = rng.random(200)
    for shift in (0.0, 0.02, 0.05):
        arm = base + shift + 0.2 * rng.normal(size=200)
        row = row_of({"mean": frame_of(base), "gti": frame_of(arm)}, resamples=9999)
        scipys = permutation_test((arm - base,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=0).pvalue
        assert row["p"] == row["p_users"] and abs(row["p"] - ttest_rel(arm, base).pvalue) < 0.02 > abs(row["p"] - scipys)


def test_copies_of_seeds_and_the_order_of_rows_change_nothing():
    arms = study(np.random.default_rng(2))
    table = compare(arms)
    assert compare({name: seeds[::-1] for name, seeds in arms.items()}).round(9).equals(table.round(9))
    one = {name: seeds[0] for name, seeds in arms.items()}
    assert (
        compare({name: [f] * 3 for name, f in one.items()})
        .drop(columns="seeds")
        .round(9)
        .equals(compare(one).drop(columns="seeds").round(9))
    )
    shuffled = {name: [f.sample(frac=1, random_state=i) for i, f in enumerate(seeds)] for name, seeds in arms.items()}
    assert compare({"mean": arms["mean"], "gti": shuffled["gti"]}).equals(table)
    assert compare(arms).equals(table) and not compare(arms, seed=1).equals(table)


def test_arms_do_not_affect_each_other():
    arms = study(np.random.default_rng(3)) | {"other": study(np.random.default_rng(4))["gti"]}
    both, alone = compare(arms), compare({name: arms[name] for name in ("mean", "gti")})
    columns = ["mean", "gain", "low", "high", "p", "p_users"]
    assert both.loc[("recall@10", "gti"), columns].equals(alone.loc[("recall@10", "gti"), columns])


def test_holm_over_a_family():
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(60):
        alarms += (
            compare({name: frame_of(rng.random(100) < 0.3) for name in ("mean", "a", "b", "c")}, resamples=400)["p_holm"] < 0.05
        ).any()
    assert alarms <= 8  # 3 expected


def test_holm_by_hand_and_bounds():
    p = np.random.default_rng(0).random(20) ** 3
    adjusted, order = holm(p), np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all() and (adjusted >= p).all() and adjusted.max() <= 1
    assert (adjusted <= np.minimum(p * 20, 1)).all() and (
        adjusted >= false_discovery_control(p) - 1e-12
    ).all()  # between Benjamini-Hochberg and Bonferroni
    assert holm([0.2]) == [0.2] and holm([]).size == 0


def test_holm_corrects_over_the_compared_columns():
    rng = np.random.default_rng(6)
    frames = {name: frame_of(rng.random(80) < p).assign(**{"ndcg@10": rng.random(80)}) for name, p in (("mean", 0.2), ("gti", 0.4))}
    all_of_them, one = compare(frames), compare(frames, columns=["recall@10"])
    assert list(one.index) == [("recall@10", "mean"), ("recall@10", "gti")] and len(all_of_them) == 4
    assert one.loc[("recall@10", "gti"), "p_holm"] == one.loc[("recall@10", "gti"), "p"] <= all_of_them.loc[("recall@10", "gti"), "p_holm"]


def test_baseline_that_never_hits_has_no_relative_gain():
    row = row_of({"mean": frame_of(np.zeros(30)), "gti": frame_of(np.arange(30) < 9)})
    assert row[["gain", "low", "high"]].isna().all() and row["p"] < 0.05


def test_arm_that_never_hits_and_arms_that_hardly_do():
    row = row_of({"gti": frame_of(np.zeros(30)), "mean": frame_of(np.arange(30) < 9)})
    assert row["gain"] == -1 and row[["low", "high"]].isna().all() and row["p"] < 0.05
    row = row_of({"mean": frame_of(np.arange(30) < 1), "gti": frame_of(np.arange(30) < 3)})
    assert (
        row["gain"] == pytest.approx(2) and np.isposinf(row["high"]) and -1 <= row["low"] <= 2
    )  # a third of the draws have no hit of the baseline
    nothing = row_of({"mean": frame_of(np.zeros(30)), "gti": frame_of(np.zeros(30))})
    assert nothing["p"] == 1 and np.isnan(nothing["gain"])


@pytest.mark.parametrize(
    "frames, options, message",
    [
        (lambda f: {"mean": f, "gti": f.rename(columns={"recall@10": "recall@5"})}, {}, "same ks"),
        (lambda f: {"mean": f, "gti": f.assign(**{"ndcg@10": 1.0})}, {}, "ndcg@10 has to be in all frames"),
        (lambda f: {"mean": f, "gti": [f, f[1:]]}, {}, "gti: evaluated on 2 users, others on 3"),
        (lambda f: {"mean": f, "gti": f.set_axis([7, 8, 9])}, {}, "not the same"),
        (lambda f: {"mean": f, "gti": pd.concat([f, f])}, {}, "user 0 occurs more than once"),
        (lambda f: {"mean": f, "gti": []}, {}, "gti: got no frame"),
        (lambda f: {"mean": f, "gti": f.replace(1.0, np.nan)}, {}, "gti: user 0 has a metric that is NaN"),
        (lambda f: {"mean": f[["target"]], "gti": f}, {}, "mean: has no metric"),
        (lambda f: {"mean": f[:1], "gti": f[:1]}, {}, "allowed: 2 and up"),
        (lambda f: {"mean": f, "gti": f}, {"resamples": 10}, "resamples: got 10"),
        (lambda f: {"mean": f, "gti": f}, {"columns": []}, "at least one has to be in all frames"),
        (lambda f: {"mean": f, "gti": f}, {"baseline": "men"}, "baseline: got 'men'"),
    ],
)
def test_what_cannot_be_compared_is_refused(frames, options, message):
    frame = frame_of([1, 0, 0]).assign(target=5)
    with pytest.raises(GTIError, match=message):
        compare(frames(frame), **options)


def test_the_table_of_gains_reads_as_the_comparison():
    compared = compare(study(np.random.default_rng(0), shift=0.8))
    table = gain_table(compared)
    row = compared.loc[("recall@10", "gti")]
    assert list(table.index) == ["mean", "gti"] and table.loc["mean", "recall@10"] == f"{compared.loc[('recall@10', 'mean'), 'mean']:.4f}"
    assert table.loc["gti", "recall@10"].startswith(f"{100 * row['gain']:+.1f} % (") and table.loc["gti", "recall@10"].endswith("*") == (
        row["p_holm"] < 0.05
    )


COMMITTED = Path(__file__).parents[2] / "studies/results/movielens"


def test_the_committed_study_follows_from_its_users():
    "Every number of the table from the ranks of the users, through parquet."
    users = pd.read_parquet(COMMITTED / "per_user.parquet")
    frames = {
        arm: [f.set_index("user").drop(columns=["arm", "seed"]) for _, f in part.groupby("seed")]
        for arm, part in users.groupby("arm", sort=False)
    }
    for seeds in frames.values():
        for f in seeds:
            again = evaluate_ranking(lists_with(f), f["target"].to_numpy(), users=f.index)
            pd.testing.assert_frame_equal(again, f)
    committed = pd.read_csv(COMMITTED / "comparison.csv", index_col=["metric", "arm"])
    pd.testing.assert_frame_equal(compare(frames), committed, rtol=1e-9)


def lists_with(frame, width=20):
    "Lists of other items that have each target at its rank."
    lists = np.arange(width) + 10_000 + np.zeros((len(frame), 1), int)
    for row, target, rank in zip(lists, frame["target"], frame["rank"], strict=True):
        if rank == rank:
            row[int(rank) - 1] = target
    return lists


def test_where_all_users_see_the_same_difference_seeds_alone_decide():

    def frame(value):
        return pd.DataFrame({"ndcg@10": np.full(20, value)})

    base, arm = (0.5, 0.1, 0.9), (0.6, 0.2, 0.95)
    row = compare({"mean": [frame(v) for v in base], "x": [frame(v) for v in arm]}).loc[("ndcg@10", "x")]
    assert row.p == pytest.approx(ttest_ind(arm, base, equal_var=False).pvalue, abs=1e-6) and row.low < 0 < row.high
    apart = compare({"mean": [frame(v) for v in (0.50, 0.51)], "x": [frame(v) for v in (0.80, 0.81)]}).loc[("ndcg@10", "x")]
    assert apart.p < 0.01 and 0 < apart.low < apart.gain < apart.high
    assert compare({"mean": frame(0.5), "x": frame(0.6)}).loc[("ndcg@10", "x"), ["low", "high"]].tolist() == pytest.approx([0.2, 0.2])
