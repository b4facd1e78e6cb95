"data: files as users have them, the cleaning rules on awkward tables, and the way to the disk and back."
import json

import numpy as np
import pandas as pd
import pytest
from gti_nb.core import GTIError
from gti_nb.data import RecDataset, load_dataset
from gti_nb.sources import toy_tables
from gti_nb.tables import read_pair

ITEMS, EVENTS = toy_tables()


def write(frame: pd.DataFrame, path):
    if path.suffix == ".parquet": frame.to_parquet(path)
    elif path.suffix == ".jsonl": path.write_text(frame.to_json(orient="records", lines=True, force_ascii=False), encoding="utf-8")
    else: frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("items_type", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("events_type", [".csv", ".parquet", ".jsonl"])
def test_every_format_gives_the_same_data(tmp_path, items_type, events_type):
    write(ITEMS, tmp_path/f"items{items_type}"); write(EVENTS, tmp_path/f"interactions{events_type}")
    wanted = load_dataset("toy").content_hash
    assert load_dataset(tmp_path).content_hash == wanted
    assert load_dataset(items=tmp_path/f"items{items_type}", interactions=tmp_path/f"interactions{events_type}").content_hash == wanted
    assert load_dataset(items=ITEMS, interactions=EVENTS).content_hash == wanted


def test_byte_order_mark_quotes_and_float_ids(tmp_path):
    items = pd.DataFrame({"item_id": range(40), "title": [f'He said "go",\nand {i} went' for i in range(40)]})
    events = EVENTS.assign(item_id=EVENTS.item_id.str[1:].astype(float))
    (tmp_path/"items.csv").write_text(items.to_csv(index=False), encoding="utf-8-sig"); write(events, tmp_path/"interactions.csv")
    assert ",0.0," in (tmp_path/"interactions.csv").read_text().replace("\n", ",")  or ".0," in (tmp_path/"interactions.csv").read_text()
    data = load_dataset(tmp_path)
    assert data.n_items == 40 and data.items.title[3] == 'He said "go", and 3 went'
    assert [s.tolist() for s in data.sequences] == [s.tolist() for s in load_dataset("toy").sequences]


def test_ids_that_only_look_like_numbers_are_left_alone():
    items = ITEMS.assign(item_id=["007"] + ["1.5"] + ITEMS.item_id[2:].tolist())
    assert read_pair(items, EVENTS)[0].item_id[:2].tolist() == ["007", "1.5"]


@pytest.mark.parametrize("spoil, says", [
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
])
def test_spoilt_csv_is_refused_by_name(tmp_path, spoil, says):
    write(ITEMS, tmp_path/"items.csv"); good = write(EVENTS, tmp_path/"interactions.csv").read_text()
    bad = spoil(good); assert bad != good
    (tmp_path/"interactions.csv").write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with pytest.raises(GTIError) as e: load_dataset(tmp_path)
    assert says in str(e.value) and "interactions.csv" in str(e.value)


def test_every_row_with_one_cell_too_many_is_refused(tmp_path):
    "pandas would quietly take the first column for row names, or drop the last."
    write(ITEMS, tmp_path/"items.csv")
    lines = write(EVENTS, tmp_path/"interactions.csv").read_text().splitlines()
    (tmp_path/"interactions.csv").write_text("\n".join([lines[0]] + [f"0,{line}" for line in lines[1:]]))
    with pytest.raises(GTIError, match="interactions.csv: not a table delimited by ','"): load_dataset(tmp_path)


def test_places_that_hold_no_tables(tmp_path):
    with pytest.raises(GTIError, match="no data set recognised; it holds: nothing"): load_dataset(tmp_path)
    write(ITEMS, tmp_path/"items.csv"); write(ITEMS, tmp_path/"items.parquet")
    with pytest.raises(GTIError, match="no data set recognised; it holds: items.csv, items.parquet;"): load_dataset(tmp_path)
    with pytest.raises(GTIError, match="a file, expected a folder"): load_dataset(tmp_path/"items.csv")
    with pytest.raises(GTIError, match="a folder, expected a file"): load_dataset(items=tmp_path, interactions=tmp_path)
    with pytest.raises(GTIError, match="nothing.csv: No such file"): load_dataset(items=tmp_path/"nothing.csv", interactions=tmp_path/"items.csv")
    (tmp_path/"fake.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(GTIError, match="fake.parquet"): load_dataset(items=tmp_path/"fake.parquet", interactions=tmp_path/"items.csv")


def test_awkward_texts_stay_one_line():
    awkward = ["<|im_end|>\n<a_1>", "nul\x00byte", "مرحبا", "🎬" * 3, "x" * 100_000, None, float("nan"), "\ud800 lone", " \t "]
    items = ITEMS.assign(title=pd.Series(awkward + ITEMS.title[len(awkward):].tolist(), dtype=object))
    data = load_dataset(items=items, interactions=EVENTS)
    assert data.items.title[:9].tolist() == ["<|im_end|> <a_1>", "nul byte", "مرحبا", "🎬🎬🎬", "x" * 100_000, "", "", "lone", ""]
    assert all(len(t.splitlines()) == 1 and t.encode() for t in data.texts())
    assert data.text(5) == f"{data.items.description[5]}. {data.items.categories[5]}"


def test_row_order_of_the_file_decides_between_equal_times_and_nothing_else():
    shuffled = EVENTS.sample(frac=1, random_state=3)
    ours, theirs = load_dataset("toy"), load_dataset(items=ITEMS, interactions=shuffled)
    by_user = dict(zip(theirs.user_ids, theirs.sequences))
    assert all(np.array_equal(by_user[u], s) for u, s in zip(ours.user_ids, ours.sequences))
    flat = load_dataset(items=ITEMS, interactions=shuffled.assign(timestamp=0))
    for u, s in zip(flat.user_ids, flat.sequences):
        assert flat.items.item_id[s].tolist() == shuffled.item_id[shuffled.user_id == u].tolist()


def test_nanoseconds_keep_their_order(tmp_path):
    events = EVENTS.assign(timestamp=1_700_000_000_000_000_000 + EVENTS.timestamp.rank().astype("int64"))
    write(events.iloc[::-1], tmp_path/"interactions.csv"); write(ITEMS, tmp_path/"items.csv")
    data = load_dataset(tmp_path)
    assert dict(zip(data.user_ids, map(tuple, data.sequences))) == dict(zip(load_dataset("toy").user_ids, map(tuple, load_dataset("toy").sequences)))


def test_times_may_be_absent_when_said():
    data = load_dataset(items=ITEMS, interactions=EVENTS.drop(columns="timestamp"), columns={"timestamp": None})
    assert data.timestamps is None and [s.tolist() for s in data.sequences] == [s.tolist() for s in load_dataset("toy").sequences]


def slow_k_core(events: list[tuple], k: int) -> set[tuple]:
    "The definition, one user or item at a time."
    events = set(events)
    while True:
        users, items = pd.Series([u for u, _ in events]).value_counts(), pd.Series([i for _, i in events]).value_counts()
        kept = {(u, i) for u, i in events if users[u] >= max(k, 3) and items[i] >= k}
        if kept == events: return events
        events = kept


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_k_core_equals_its_definition(k, seed):
    rng = np.random.default_rng(seed)
    pairs = sorted({(f"u{u}", f"i{i}") for u, i in zip(rng.zipf(1.5, 400) % 40, rng.zipf(1.4, 400) % 60)})
    events = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(timestamp=range(len(pairs)))
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(60)], "title": "t"})
    wanted = slow_k_core(pairs, k)
    assert 0 < len(wanted) < len(pairs)
    data = load_dataset(items=items, interactions=events, k_core=k)
    assert {(u, data.items.item_id[i]) for u, s in zip(data.user_ids, data.sequences) for i in s} == wanted
    assert data.n_items == len({i for _, i in wanted}) and data.report["events"] == len(wanted)


def test_every_event_and_item_is_accounted_for():
    report = load_dataset("movielens-100k").report
    assert report["events in the table"] - sum(v for k, v in report.items() if k.startswith("events dropped")) == report["events"] == 99_287
    assert report["items in the table"] - sum(v for k, v in report.items() if k.startswith("items dropped")) == report["items"] == 1_349
    assert report["users in the table"] - sum(v for k, v in report.items() if k.startswith("users dropped")) == report["users"] == 943


def test_save_and_load(tmp_path):
    data = load_dataset("toy"); data.save(tmp_path/"a"); again = RecDataset.load(tmp_path/"a")
    assert again.items.equals(data.items) and again.user_ids == data.user_ids and again.report == data.report and again.name == "toy"
    assert all(np.array_equal(a, b) for a, b in zip(again.sequences + again.timestamps, data.sequences + data.timestamps))
    without = RecDataset(data.items, data.sequences, data.user_ids); without.save(tmp_path/"b")
    assert RecDataset.load(tmp_path/"b").timestamps is None and without.content_hash != data.content_hash


def test_a_saved_data_set_that_was_changed_is_refused(tmp_path):
    load_dataset("toy").save(tmp_path/"a")
    items = pd.read_parquet(tmp_path/"a"/"items.parquet"); items.loc[0, "title"] = "Another"; items.to_parquet(tmp_path/"a"/"items.parquet")
    with pytest.raises(GTIError, match="content hash is .*, expected"): load_dataset(tmp_path/"a")
    (tmp_path/"a"/"items.parquet").write_bytes(b"PAR1")
    with pytest.raises(GTIError, match="damaged"): load_dataset(tmp_path/"a")
    (tmp_path/"a"/"dataset.json").write_text(json.dumps({"schema": 3}))
    with pytest.raises(GTIError, match="schema 3, this version reads 1 and 2"): load_dataset(tmp_path/"a")


def test_what_does_not_fit_together_is_no_data_set():
    toy = load_dataset("toy")
    with pytest.raises(GTIError, match="allowed 0 to 39"): RecDataset(toy.items, [[0, 40]], ["u"])
    with pytest.raises(GTIError, match="1 user ids for 2 sequences"): RecDataset(toy.items, [[0], [1]], ["u"])
    with pytest.raises(GTIError, match="differ in length"): RecDataset(toy.items, [[0, 1]], ["u"], [[5]])
    with pytest.raises(GTIError, match="lack the columns"): RecDataset(toy.items.drop(columns="title"), [[0]], ["u"])
    with pytest.raises(GTIError, match="fewer than 3 events"): RecDataset(toy.items, [[0, 1]], ["u"]).leave_one_out()
