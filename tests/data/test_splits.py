"splits: both kinds against their definitions, and every leak check on a split with one error."

import copy

import numpy as np
import pandas as pd
import pytest

from gti_nb.core import GTIError
from gti_nb.data.dataset import RecDataset, load_dataset
from gti_nb.data.splits import Split
from gti_nb.evaluate.baselines import popularity, transitions


def random_dataset(seed: int, repeats: bool = False) -> RecDataset:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 12, 20)
    sequences = [rng.integers(30, size=n) if repeats else rng.permutation(30)[:n] for n in sizes]
    times = [np.sort(rng.integers(100, size=n)) + (np.arange(n) * 1000 if repeats else 0) for n in sizes]
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(30)], "title": "t", "description": "", "categories": ""})
    return RecDataset(items, sequences, [f"u{u}" for u in range(20)], times, policies={"repeats": "all"} if repeats else {})


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("repeats", [False, True])
def test_leave_one_out_by_definition(seed, repeats):
    data = random_dataset(seed, repeats)
    split = data.leave_one_out(max_history=4)
    for u, s in enumerate(data.sequences):
        assert split.train[u].tolist() == s[:-2].tolist() and (split.valid[u], split.test[u]) == (s[-2], s[-1])
        assert split.history(u, "valid").tolist() == s[:-2][-4:].tolist() and split.history(u).tolist() == s[:-1][-4:].tolist()
    assert split.users("valid").tolist() == split.users("test").tolist() == list(range(20))
    assert split.check().loc["target in history (test)", "found"] == sum(s[-1] in s[:-1] for s in data.sequences)


@pytest.mark.parametrize("seed", range(10))
def test_global_time_by_definition(seed):
    data = random_dataset(seed)
    split = data.global_time(max_history=5)
    valid_from, test_from = split.cuts
    everything = np.concatenate(data.timestamps)
    assert (everything < test_from).mean() <= 0.9 <= (everything <= test_from).mean() and (everything < valid_from).mean() <= 0.8 <= (
        everything <= valid_from
    ).mean()
    timelines = [list(zip(s.tolist(), t, strict=True)) for s, t in zip(data.sequences, data.timestamps, strict=True)]
    trained = {i for events in timelines for i, when in events if when < valid_from}
    for u, events in enumerate(timelines):
        train, between, later = (
            [i for i, w in events if w < valid_from],
            [i for i, w in events if valid_from <= w < test_from],
            [i for i, w in events if w >= test_from],
        )
        assert split.train[u].tolist() == train
        assert split.valid[u] == (between[0] if train and between else -1)
        assert split.test[u] == (later[0] if train + between and later else -1)
        if split.valid[u] >= 0:
            assert split.history(u, "valid").tolist() == train[-5:]
        if split.test[u] >= 0:
            assert split.history(u).tolist() == (train + between)[-5:]
        for which in ("valid", "test"):
            assert split.cold(which)[u] == (getattr(split, which)[u] >= 0 and getattr(split, which)[u] not in trained)
    assert not split.check().query("not allowed").found.any()
    new = sum((t >= test_from).all() for t in data.timestamps)
    assert split.report["users without a history at the test"] == new and split.report["test targets"] == (split.test >= 0).sum() == len(
        split.users()
    )


def test_users_without_a_history_are_not_asked():
    items = pd.DataFrame({"item_id": ["a", "b", "c", "d"], "title": "t", "description": "", "categories": ""})
    data = RecDataset(
        items,
        [[0, 1, 2], [0, 1, 2], [3, 1, 0], [1, 2, 3]],
        ["early", "all", "late", "middle"],
        [[1, 2, 3], [1, 11, 21], [21, 22, 23], [12, 13, 22]],
    )
    split = data.global_time(valid_from=10, test_from=20)
    assert split.valid.tolist() == [-1, 1, -1, -1] and split.test.tolist() == [-1, 2, -1, 3]
    assert (
        [s.tolist() for s in split.train] == [[0, 1, 2], [0], [], []]
        and split.past(3).tolist() == [1, 2]
        and split.timeline(2).tolist() == []
    )
    assert split.cold("test").tolist() == [False, False, False, True]
    assert (
        split.report["users without a history at validation"],
        split.report["users without a history at the test"],
        split.report["events after the test item, not used"],
    ) == (1, 1, 3)
    assert not split.check().query("not allowed").found.any()


@pytest.mark.parametrize("kind", ["leave_one_out", "global_time"])
def test_real_data_passes(kind):
    table = getattr(load_dataset("movielens-100k"), kind)().check()
    assert not table.query("not allowed").found.any() and table["of"].min() > 50
    assert getattr(random_dataset(3), kind)().check()["of"].min() > 5


def spoil_history(s):
    s.test[4] = s.train[4][0]


def spoil_validation(s):
    s.valid[4] = s.train[4][1]


def spoil_event(s):
    s.train[4][1], s.times[4][1] = s.train[4][0], s.times[4][0]


def spoil_order(s):
    s.times[4] = s.times[4][::-1]


def spoil_last_time(s):
    s.times[4][-1] = s.times[4][0] - 1


def spoil_train(s):
    s.train[4] = np.append(s.train[4], s.test[4])
    s.times[4] = np.append(s.times[4], s.times[4][-1])


def spoil_length(s):
    s.times[4] = s.times[4][1:]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_history, r"target in history \(test\): 1 of 30, first user 'u04'"),
        (spoil_validation, r"target in history \(validation\): 1 of 30, first user 'u04'"),
        (spoil_event, "same event twice: 1 of 300, first user 'u04'"),
        (spoil_order, "out of time order: 9 of 270, first user 'u04'"),
        (spoil_last_time, "out of time order: 1 of 270, first user 'u04'"),
        (spoil_train, r"target in history \(validation|test\)"),
        (spoil_length, "1 users have a different number of times than of items, first user index 4"),
    ],
)
def test_every_check_can_fail(spoil, message):
    split = copy.deepcopy(load_dataset("toy").leave_one_out())
    split.check()
    spoil(split)
    with pytest.raises(GTIError, match=message):
        split.check()


@pytest.mark.parametrize("side", [0, 1])
def test_an_event_on_the_wrong_side_of_a_cut(side):
    data = random_dataset(side)
    split = copy.deepcopy(data.global_time())
    when = split.cuts[side]
    user = next(u for u, t in enumerate(split.times) if (np.asarray(t) == when).any())
    split.cuts = (when + 1, split.cuts[1]) if side == 0 else (split.cuts[0], when + 1)  # the event at the cut is now too early for its part
    with pytest.raises(GTIError, match=f"wrong side of a cut: [0-9]+ of .*, first user {data.user_ids[user]!r}"):
        split.check()


def test_times_of_a_handmade_data_set_are_checked():
    toy = load_dataset("toy")
    times = [t.copy() for t in toy.timestamps]
    times[7][[3, 4]] = times[7][[4, 3]]
    wrong = RecDataset(toy.items, toy.sequences, toy.user_ids, times)
    with pytest.raises(GTIError, match="out of time order: 1 of 270, first user 'u07'"):
        wrong.leave_one_out().check()
    with pytest.raises(GTIError, match="user 'u07' are not in time order"):
        wrong.global_time()


def test_what_needs_times_says_so_without_them():
    toy = load_dataset("toy")
    data = RecDataset(toy.items, toy.sequences, toy.user_ids)
    with pytest.raises(GTIError, match="has no timestamps"):
        data.global_time()
    table = data.leave_one_out().check()
    assert table.found.isna().to_dict() == {
        "target in history (validation)": False,
        "target in history (test)": False,
        "same event twice": False,
        "out of time order": True,
        "target at the time of the event before it": True,
    }


def test_repeats_are_leaks_unless_they_are_meant():
    items, sequences, times = load_dataset("toy").items, [[0, 1, 0, 2], [3, 4, 5, 3]], [[1, 2, 3, 4], [1, 2, 3, 4]]
    meant = RecDataset(items, sequences, ["u", "w"], times, policies={"repeats": "all"}).leave_one_out().check()
    assert meant.found.tolist() == [1, 1, 0, 0, 0] and meant.allowed.tolist() == [True, True, False, False, True]
    with pytest.raises(GTIError, match=r"target in history \(validation\): 1 of 2, first user 'u'"):
        RecDataset(items, sequences, ["u", "w"], times).leave_one_out().check()
    times[1][3] = 1
    with pytest.raises(GTIError, match="same event twice: 1 of 8, first user 'w'"):
        RecDataset(items, sequences, ["u", "w"], times, policies={"repeats": "all"}).leave_one_out().check()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(valid_from=5), "test_from is missing"),
        (dict(valid_from=9, test_from=9), "the second must be later"),
        (dict(valid_from=-2, test_from=-1), "leave 0 training events"),
        (dict(valid_share=0), "valid_share: got 0, allowed: a number above 0"),
        (dict(valid_share=0.6, test_share=0.4), "together below 1"),
        (dict(max_history=0), "max_history: got 0"),
    ],
)
def test_times_that_do_not_split(arguments, message):
    with pytest.raises(GTIError, match=message):
        random_dataset(0).global_time(**arguments)


def test_times_too_coarse_for_shares():
    data = random_dataset(0)
    data.timestamps = [np.ones(len(s), int) for s in data.sequences]
    with pytest.raises(GTIError, match="the times are too coarse for these shares"):
        data.global_time()


@pytest.mark.parametrize("baseline", [popularity, transitions])
def test_baselines_show_nothing_that_was_taken_before_a_cut(baseline):
    split = load_dataset("movielens-100k").global_time()
    lists = baseline(split, "test", width=50)
    assert all(not set(lists[u].tolist()) & set(split.past(u).tolist()) for u in split.users("test"))
    assert any(len(split.between[u]) for u in split.users("test"))


def test_a_split_made_by_hand_is_a_split():
    split = Split([np.array([0, 1])], np.array([2]), np.array([3]), 4)
    assert split.history(0).tolist() == [0, 1, 2] and split.check().found.dropna().tolist() == [0, 0, 0]
    split.test[0] = 1
    with pytest.raises(GTIError, match="first user 0"):
        split.check()
