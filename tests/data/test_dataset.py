"dataset: files as users have them, the cleaning rules on awkward tables, and saving and loading."

import json

import numpy as np
import pandas as pd
import pytest

from gti_nb.core import GTIError
from gti_nb.data.columns import read_pair
from gti_nb.data.dataset import RecDataset, load_dataset
from gti_nb.data.toy import toy_tables

ITEMS, EVENTS = toy_tables()


def write(frame: pd.DataFrame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text(frame.to_json(orient="records", lines=True, force_ascii=False), encoding="utf-8")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("items_type", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("events_type", [".csv", ".parquet", ".jsonl"])
def test_every_format_gives_the_same_data(tmp_path, items_type, events_type):
    write(ITEMS, tmp_path / f"items{items_type}")
    write(EVENTS, tmp_path / f"interactions{events_type}")
    wanted = load_dataset("toy").content_hash
    assert load_dataset(tmp_path).content_hash == wanted
    assert load_dataset(items=tmp_path / f"items{items_type}", interactions=tmp_path / f"interactions{events_type}").content_hash == wanted
    assert load_dataset(items=ITEMS, interactions=EVENTS).content_hash == wanted


def test_byte_order_mark_quotes_and_float_ids(tmp_path):
    items = pd.DataFrame({"item_id": range(40), "title": [f'He said "go",\nand {i} went' for i in range(40)]})
    events = EVENTS.assign(item_id=EVENTS.item_id.str[1:].astype(float))
    (tmp_path / "items.csv").write_text(items.to_csv(index=False), encoding="utf-8-sig")
    write(events, tmp_path / "interactions.csv")
    assert ",0.0," in (tmp_path / "interactions.csv").read_text().replace("\n", ",") or ".0," in (tmp_path / "interactions.csv").read_text()
    data = load_dataset(tmp_path)
    assert data.n_items == 40 and data.items.title[3] == 'He said "go", and 3 went'
    assert [s.tolist() for s in data.sequences] == [s.tolist() for s in load_dataset("toy").sequences]


def test_ids_that_only_look_like_numbers_are_left_alone():
    items = ITEMS.assign(item_id=["007"] + ["1.5"] + ITEMS.item_id[2:].tolist())
    assert read_pair(items, EVENTS)[0].item_id[:2].tolist() == ["007", "1.5"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda t: t.replace(",", ";"), "the delimiter seems to be ';', pass delimiter=';'"),
        (lambda t: "", "interactions.csv: empty file"),
        (lambda t: t.splitlines()[0] + "\n", "interactions.csv: no rows"),
        (lambda t: t.replace("timestamp", "time"), "no column 'timestamp', it has: 'user_id', 'item_id', 'time'"),
        (lambda t: t.replace("u00,f00,", "u00,,", 1), "column 'item_id': row 1 (line 2) has no id"),
        (lambda t: t.replace(",172800\n", ",yesterday\n", 1), "column 'timestamp': row 3 (line 4) is 'yesterday'"),
        (lambda t: t.replace(",172800\n", ",inf\n", 1), "column 'timestamp': row 3 (line 4) is 'inf'"),
        (lambda t: t.replace(",172800\n", ",\n", 1), "column 'timestamp': row 3 (line 4) is nan"),
        (lambda t: t.replace(",172800\n", ",172800,5\n", 1), "has 4 cells, the header has 3"),
        (lambda t: t.encode() + b"\xff\xfe", "not UTF-8 text"),
    ],
)
def test_spoilt_csv_is_refused_by_name(tmp_path, spoil, message):
    write(ITEMS, tmp_path / "items.csv")
    good = write(EVENTS, tmp_path / "interactions.csv").read_text()
    bad = spoil(good)
    assert bad != good
    (tmp_path / "interactions.csv").write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with pytest.raises(GTIError) as e:
        load_dataset(tmp_path)
    assert message in str(e.value) and "interactions.csv" in str(e.value)


def test_every_row_with_one_cell_too_many_is_refused(tmp_path):
    "pandas would silently use the first column as row names, or drop the last one."
    write(ITEMS, tmp_path / "items.csv")
    lines = write(EVENTS, tmp_path / "interactions.csv").read_text().splitlines()
    (tmp_path / "interactions.csv").write_text("\n".join([lines[0]] + [f"0,{line}" for line in lines[1:]]))
    with pytest.raises(GTIError, match="interactions.csv: line 2 has 4 cells, the header has 3"):
        load_dataset(tmp_path)


def test_places_that_hold_no_tables(tmp_path):
    with pytest.raises(GTIError, match="no data set recognised; it holds: nothing"):
        load_dataset(tmp_path)
    write(ITEMS, tmp_path / "items.csv")
    write(ITEMS, tmp_path / "items.parquet")
    with pytest.raises(GTIError, match="no data set recognised; it holds: items.csv, items.parquet;"):
        load_dataset(tmp_path)
    with pytest.raises(GTIError, match="a file, expected a folder"):
        load_dataset(tmp_path / "items.csv")
    with pytest.raises(GTIError, match="a folder, expected a file"):
        load_dataset(items=tmp_path, interactions=tmp_path)
    with pytest.raises(GTIError, match="nothing.csv: No such file"):
        load_dataset(items=tmp_path / "nothing.csv", interactions=tmp_path / "items.csv")
    (tmp_path / "fake.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(GTIError, match="fake.parquet"):
        load_dataset(items=tmp_path / "fake.parquet", interactions=tmp_path / "items.csv")


def test_awkward_texts_stay_one_line():
    awkward = ["<|im_end|>\n<a_1>", "nul\x00byte", "مرحبا", "🎬" * 3, "x" * 100_000, None, float("nan"), "\ud800 lone", " \t "]
    items = ITEMS.assign(title=pd.Series(awkward + ITEMS.title[len(awkward) :].tolist(), dtype=object))
    data = load_dataset(items=items, interactions=EVENTS)
    assert data.items.title[:9].tolist() == ["<|im_end|> <a_1>", "nul byte", "مرحبا", "🎬🎬🎬", "x" * 100_000, "", "", "\ufffd lone", ""]
    assert all(len(t.splitlines()) == 1 and t.encode() for t in data.texts())
    assert data.text(5) == f"{data.items.description[5]}. {data.items.categories[5]}"


def test_row_order_of_the_file_decides_between_equal_times_and_nothing_else():
    shuffled = EVENTS.sample(frac=1, random_state=3)
    ours, theirs = load_dataset("toy"), load_dataset(items=ITEMS, interactions=shuffled)
    by_user = dict(zip(theirs.user_ids, theirs.sequences, strict=True))
    assert all(np.array_equal(by_user[u], s) for u, s in zip(ours.user_ids, ours.sequences, strict=True))
    flat = load_dataset(items=ITEMS, interactions=shuffled.assign(timestamp=0))
    for u, s in zip(flat.user_ids, flat.sequences, strict=True):
        assert flat.items.item_id[s].tolist() == shuffled.item_id[shuffled.user_id == u].tolist()


def test_nanoseconds_keep_their_order(tmp_path):
    events = EVENTS.assign(timestamp=1_700_000_000_000_000_000 + EVENTS.timestamp.rank().astype("int64"))
    write(events.iloc[::-1], tmp_path / "interactions.csv")
    write(ITEMS, tmp_path / "items.csv")
    data = load_dataset(tmp_path)
    toy = load_dataset("toy")
    theirs = dict(zip(toy.user_ids, map(tuple, toy.sequences), strict=True))
    assert dict(zip(data.user_ids, map(tuple, data.sequences), strict=True)) == theirs


def test_times_may_be_absent_when_said():
    data = load_dataset(items=ITEMS, interactions=EVENTS.drop(columns="timestamp"), columns={"timestamp": None})
    assert data.timestamps is None and [s.tolist() for s in data.sequences] == [s.tolist() for s in load_dataset("toy").sequences]


def slow_k_core(events: list[tuple], k: int) -> set[tuple]:
    "The definition, one user or item at a time."
    events = set(events)
    while True:
        users, items = pd.Series([u for u, _ in events]).value_counts(), pd.Series([i for _, i in events]).value_counts()
        kept = {(u, i) for u, i in events if users[u] >= max(k, 3) and items[i] >= k}
        if kept == events:
            return events
        events = kept


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_k_core_equals_its_definition(k, seed):
    rng = np.random.default_rng(seed)
    users, items = rng.zipf(1.5, 400) % 40, rng.zipf(1.4, 400) % 60
    pairs = sorted({(f"u{u}", f"i{i}") for u, i in zip(users, items, strict=True)})
    events = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(timestamp=range(len(pairs)))
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(60)], "title": "t"})
    wanted = slow_k_core(pairs, k)
    assert 0 < len(wanted) < len(pairs)
    data = load_dataset(items=items, interactions=events, k_core=k)
    assert {(u, data.items.item_id[i]) for u, s in zip(data.user_ids, data.sequences, strict=True) for i in s} == wanted
    assert data.n_items == len({i for _, i in wanted}) and data.report["events"] == len(wanted)


def slow_cleaning(items: list[dict], events: list[dict], k_core=5, min_rating=None, repeats="first", max_events=None):
    "The rules as stated, one row at a time: kept items, {user: [(item, time), ...]} in order, users in order, counts."
    counts = dict.fromkeys(
        ["id seen before", "no text", "unknown item", "rating", "duplicate", "tied", "repeat", "older", "short", "core"], 0
    )
    catalogue = {}
    for row in items:
        if row["item_id"] in catalogue:
            counts["id seen before"] += 1
        else:
            catalogue[row["item_id"]] = row
    for item in [i for i, row in catalogue.items() if not row["title"] and not row["description"]]:
        counts["no text"] += 1
        del catalogue[item]
    left, seen = [], set()
    for row in events:
        key = row["user_id"], row["item_id"], row["timestamp"]
        if row["item_id"] not in catalogue:
            counts["unknown item"] += 1
        elif min_rating is not None and not row["rating"] >= min_rating:
            counts["rating"] += 1
        elif key in seen:
            counts["duplicate"] += 1
        else:
            seen.add(key)
            left.append(key)
    counts["tied"] = sum(sum(u == v and t == s for v, _, s in left) > 1 for u, _, t in left)
    users = {}
    for place, (user, item, time) in enumerate(sorted(left, key=lambda e: e[2])):  # Python's sort keeps the order of equals
        taken = users.setdefault(user, [])
        again = item in [i for i, _, _ in taken]
        counts["repeat"] += again
        if not again or repeats == "all":
            taken.append((item, time, place))
    for user, taken in users.items():
        if max_events and len(taken) > max_events:
            counts["older"] += len(taken) - max_events
            users[user] = taken[-max_events:]
    users = {u: [e[:2] for e in taken] for u, taken in sorted(users.items(), key=lambda user: user[1][0][2])}
    for user in [u for u, taken in users.items() if len(taken) < 3]:
        counts["short"] += len(users.pop(user))
    while k_core:
        popularity = {i: sum(i == j for taken in users.values() for j, _ in taken) for i in catalogue}
        kept = {u: [e for e in taken if popularity[e[0]] >= k_core] for u, taken in users.items() if len(taken) >= max(k_core, 3)}
        if kept == users:
            break
        counts["core"] += sum(map(len, users.values())) - sum(map(len, kept.values()))
        users = kept
    taken = {i for events in users.values() for i, _ in events}
    return [i for i in catalogue if k_core == 0 or i in taken], {u: t for u, t in users.items() if t}, counts


def awkward_tables(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Small tables with one of each problem."
    rng = np.random.default_rng(seed)
    items = pd.DataFrame(
        {
            "item_id": [f"i{i}" for i in rng.integers(14, size=18)],
            "title": rng.choice(["", "A", "B"], 18, p=[0.2, 0.4, 0.4]),
            "description": rng.choice(["", "c"], 18),
        }
    )
    n = 160
    events = pd.DataFrame(
        {
            "user_id": [f"u{u}" for u in rng.zipf(1.4, n) % 12],
            "item_id": [f"i{i}" for i in rng.integers(16, size=n)],
            "timestamp": rng.integers(12, size=n),
            "rating": rng.integers(1, 6, n),
        }
    )
    return items, pd.concat([events, events.sample(10, random_state=seed)])


CHOICES = [
    dict(k_core=0),
    dict(k_core=2),
    dict(k_core=3, repeats="all"),
    dict(k_core=2, min_rating=2),
    dict(k_core=1, max_events=5),
    dict(k_core=2, min_rating=3, repeats="all", max_events=8),
]


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_cleaning_equals_its_rules_one_row_at_a_time(seed, choices):
    items, events = awkward_tables(seed)
    wanted, users, counts = slow_cleaning(items.to_dict("records"), events.to_dict("records"), **choices)
    assert len(users) > 1 and counts["unknown item"] and counts["duplicate"] and counts["tied"]
    data = load_dataset(items=items, interactions=events, **choices)
    assert data.items.item_id.tolist() == wanted
    ours = {}
    for user, rows, times in zip(data.user_ids, data.sequences, data.timestamps, strict=True):
        ours[user] = list(zip(data.items.item_id[rows].tolist(), times.tolist(), strict=True))
    assert ours == users and list(ours) == list(users)
    found = {(r.table, r.what): r.found for r in data.report_table().itertuples()}
    named = {
        "id seen before": ("items", "id seen before"),
        "no text": ("items", "no title and no description"),
        "unknown item": ("events", "item not in the catalogue"),
        "duplicate": ("events", "exact duplicate"),
        "tied": ("events", "same user and time as another, in row order"),
        "repeat": ("events", "user took the item before"),
        "short": ("events", "fewer than 3 events of the user"),
    }
    if "min_rating" in choices:
        named["rating"] = ("events", f"rating below {choices['min_rating']}, or none")
    if "max_events" in choices:
        named["older"] = ("events", f"before the user's latest {choices['max_events']}")
    if choices["k_core"]:
        named["core"] = ("events", f"{choices['k_core']}-core")
    assert {k: found[v] for k, v in named.items()} == {k: counts[k] for k in named}


@pytest.mark.parametrize("choices", CHOICES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_account_adds_up(seed, choices):
    data = load_dataset(items=(tables := awkward_tables(seed))[0], interactions=tables[1], **choices)
    table, last = data.report_table(), data.report_table().groupby("table").left.last()
    assert (
        last.to_dict()
        == {"items": data.n_items, "users": data.n_users, "events": sum(map(len, data.sequences))}
        == {t: data.report[t] for t in ("items", "users", "events")}
    )
    loaded = table[table.what == "as loaded"].set_index("table").left
    assert (loaded - table.groupby("table").dropped.sum() == last).all() and (table.dropped <= table.found).all()


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_hashed_ties_are_the_same_for_every_order_of_the_rows(choices):
    for seed in range(4):
        items, events = awkward_tables(seed)
        results = {
            load_dataset(items=items, interactions=events.sample(frac=1, random_state=r), ties="hash", **choices).content_hash
            for r in range(4)
        }
        assert len(results) == 1
    by_time = load_dataset(items=items, interactions=events, ties="hash", **choices)
    assert all((np.diff(t) >= 0).all() for t in by_time.timestamps)


def test_hashed_ties_do_not_favour_low_ids():
    items = pd.DataFrame({"item_id": [f"i{i:03d}" for i in range(100)], "title": "t"})
    events = pd.DataFrame([(f"u{u}", f"i{i:03d}", 0) for u in range(200) for i in range(100)], columns=["user_id", "item_id", "timestamp"])
    data = load_dataset(items=items, interactions=events, ties="hash")
    last = np.array([s[-1] for s in data.sequences])
    assert 40 < last.mean() < 60 and len(set(last.tolist())) > 70  # uniform: 49.5 +- 2, 87 distinct
    assert abs(np.corrcoef(data.sequences)[np.triu_indices(200, 1)]).mean() < 0.12  # users are ordered independently of each other


def test_choices_that_make_no_sense():
    for wrong, message in [
        (dict(k_core=2.5), "k_core: got 2.5"),
        (dict(k_core=True), "k_core: got True"),
        (dict(max_events=2), "max_events: got 2, allowed: a whole number from 5 up"),
        (dict(repeats="none"), "repeats: got 'none'"),
        (dict(ties="id"), "ties: got 'id'"),
        (dict(min_rating=float("nan")), "min_rating: got nan"),
    ]:
        with pytest.raises(GTIError, match=message):
            load_dataset("toy", **wrong)
    with pytest.raises(GTIError, match="no column 'rating'"):
        load_dataset("toy", min_rating=3)
    with pytest.raises(GTIError, match="nothing is left after cleaning"):
        load_dataset(items=ITEMS, interactions=EVENTS.assign(rating=1), min_rating=3)


def test_repeats_without_times():
    events = pd.DataFrame({"user_id": "u", "item_id": ["f00", "f01", "f00", "f00", "f02"]})
    no_times = {"timestamp": None}
    assert load_dataset(items=ITEMS, interactions=events, k_core=0, columns=no_times).sequences[0].tolist() == [0, 1, 2]
    data = load_dataset(items=ITEMS, interactions=events, k_core=0, columns=no_times, repeats="all")
    assert data.sequences[0].tolist() == [0, 1, 0, 0, 2] and data.report["events kept: user took the item before"] == 2


def test_movielens_by_rating_and_length():
    every, liked = load_dataset("movielens-100k"), load_dataset("movielens-100k", min_rating=4, max_events=50)
    assert (
        liked.report["events dropped: rating below 4, or none"] == 44_625
        and max(map(len, liked.sequences)) == 50
        and max(map(len, every.sequences)) > 600
    )
    assert np.bincount(np.concatenate(liked.sequences)).min() >= 5 and min(map(len, liked.sequences)) >= 5
    liked.leave_one_out().check()


def test_every_event_and_item_is_accounted_for():
    report = load_dataset("movielens-100k").report
    assert report["events in the table"] - sum(v for k, v in report.items() if k.startswith("events dropped")) == report["events"] == 99_287
    assert report["items in the table"] - sum(v for k, v in report.items() if k.startswith("items dropped")) == report["items"] == 1_349
    assert report["users in the table"] - sum(v for k, v in report.items() if k.startswith("users dropped")) == report["users"] == 943


def test_save_and_load(tmp_path):
    data = load_dataset("toy")
    data.save(tmp_path / "a")
    again = RecDataset.load(tmp_path / "a")
    assert again.items.equals(data.items) and again.user_ids == data.user_ids and again.report == data.report and again.name == "toy"
    assert all(np.array_equal(a, b) for a, b in zip(again.sequences + again.timestamps, data.sequences + data.timestamps, strict=True))
    without = RecDataset(data.items, data.sequences, data.user_ids)
    without.save(tmp_path / "b")
    assert RecDataset.load(tmp_path / "b").timestamps is None and without.content_hash != data.content_hash


def test_saving_twice_is_saving_once(tmp_path):
    data = load_dataset("toy")
    data.save(tmp_path / "a")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    assert (
        load_dataset("toy").save(tmp_path / "a") == tmp_path / "a"
        and {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()} == before
    )
    with pytest.raises(GTIError, match="already exists and is not empty"):
        load_dataset("toy", k_core=0, max_events=5).save(tmp_path / "a")
    (tmp_path / "a" / "events.parquet").write_bytes(b"PAR1")
    with pytest.raises(GTIError, match="damaged"):
        data.save(tmp_path / "a")


def test_policies_and_brands_are_kept(tmp_path):
    data = load_dataset(items=ITEMS.assign(brand="Studio"), interactions=EVENTS, repeats="all", k_core=3)
    data.save(tmp_path / "a")
    again = load_dataset(tmp_path / "a")
    assert again.policies == data.policies == dict(k_core=3, min_rating=None, repeats="all", ties="file", max_events=None)
    assert (
        again.items.brand.tolist() == ["Studio"] * 40
        and again.texts() == load_dataset("toy").texts()
        and again.content_hash != load_dataset("toy").content_hash
    )
    assert load_dataset(tmp_path / "a", repeats="all", k_core=3).content_hash == again.content_hash
    with pytest.raises(GTIError, match=r"a saved data set is not cleaned again \(ties='hash', saved with 'file'\)"):
        load_dataset(tmp_path / "a", ties="hash")


def test_folders_of_the_first_schema_are_read(tmp_path):
    data = load_dataset("toy")
    data.save(tmp_path / "a")
    about = json.loads((tmp_path / "a" / "dataset.json").read_text())
    (tmp_path / "a" / "dataset.json").write_text(
        json.dumps({k: v for k, v in about.items() if k not in ("kind", "policies")} | {"schema": 1})
    )
    assert load_dataset(tmp_path / "a").content_hash == data.content_hash and load_dataset(tmp_path / "a").policies == {}


def test_a_data_set_without_users_is_a_catalogue(tmp_path):
    RecDataset(ITEMS, [], []).save(tmp_path / "a")
    assert load_dataset(tmp_path / "a").n_users == 0 and load_dataset(tmp_path / "a").n_items == 40


def test_a_saved_data_set_that_was_changed_is_refused(tmp_path):
    load_dataset("toy").save(tmp_path / "a")
    items = pd.read_parquet(tmp_path / "a" / "items.parquet")
    items.loc[0, "title"] = "Another"
    items.to_parquet(tmp_path / "a" / "items.parquet")
    says = "items.parquet has other bytes than were written; the files were changed after saving"
    with pytest.raises(GTIError, match=says):
        load_dataset(tmp_path / "a")
    (tmp_path / "a" / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(GTIError, match="damaged"):
        load_dataset(tmp_path / "a")
    (tmp_path / "a" / "dataset.json").write_text(json.dumps({"schema": 3}))
    with pytest.raises(GTIError, match="schema 3, this version reads 1 and 2"):
        load_dataset(tmp_path / "a")


def test_what_does_not_fit_together_is_no_data_set():
    toy = load_dataset("toy")
    with pytest.raises(GTIError, match="allowed: 0 to 39"):
        RecDataset(toy.items, [[0, 40]], ["u"])
    with pytest.raises(GTIError, match="1 user ids for 2 sequences"):
        RecDataset(toy.items, [[0], [1]], ["u"])
    with pytest.raises(GTIError, match="differ in length"):
        RecDataset(toy.items, [[0, 1]], ["u"], [[5]])
    with pytest.raises(GTIError, match="user id 'u' occurs more than once"):
        RecDataset(toy.items, [[0], [1]], ["u", "u"])
    with pytest.raises(GTIError, match="1 users have no event"):
        RecDataset(toy.items, [[0], []], ["u", "w"])
    with pytest.raises(GTIError, match="lack the columns"):
        RecDataset(toy.items.drop(columns="title"), [[0]], ["u"])
    with pytest.raises(GTIError, match="fewer than 3 events"):
        RecDataset(toy.items, [[0, 1]], ["u"]).leave_one_out()
