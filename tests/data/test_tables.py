"tables and columns: what a cell becomes, and errors that name the file, the column and the line."

import json
import os

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gti_nb.core import GTIError
from gti_nb.data.columns import read_pair
from gti_nb.data.tables import read_table

ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Ärger", "Two\nlines", 'He said "go"'],
        "description": ["", "x", "y"],
        "categories": ["Drama", "", "War"],
        "brand": ["", "Acme", ""],
    }
)
EVENTS = pd.DataFrame({"user_id": ["u", "u", "w"], "item_id": ["b", "a", "c"], "timestamp": [3, 1, 2], "rating": [4.0, 3.5, 5.0]})


def write(frame: pd.DataFrame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text(frame.to_json(orient="records", lines=True, force_ascii=False), encoding="utf-8")
    elif path.suffix in (".item", ".inter"):
        frame.rename(columns=lambda c: f"{c}:token").to_csv(path, index=False, sep="\t", quoting=3, escapechar=None)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet", ".jsonl", "datasets", "iterable", "arrow", "frame"])
def test_ratings_and_brands_come_along_in_every_format(tmp_path, kind):
    make = {
        "datasets": datasets.Dataset.from_pandas,
        "iterable": lambda f: datasets.Dataset.from_pandas(f).to_iterable_dataset(),
        "arrow": pa.Table.from_pandas,
        "frame": pd.DataFrame.copy,
    }
    items, events = (
        make[kind](f) if kind in make else write(f, tmp_path / f"{n}{kind}") for n, f in (("items", ITEMS), ("interactions", EVENTS))
    )
    a, b = read_pair(items, events)
    assert a.values.tolist() == ITEMS.assign(title=["Ärger", "Two lines", 'He said "go"']).values.tolist()
    assert b.values.tolist() == EVENTS.values.tolist() and b.timestamp.dtype == "int64" and b.rating.dtype == "float64"


def test_what_is_absent_stays_absent():
    a, b = read_pair(ITEMS[["item_id", "title"]], EVENTS[["user_id", "item_id", "timestamp"]])
    assert list(a) == ["item_id", "title", "description", "categories"] and list(b) == ["user_id", "item_id", "timestamp"]
    assert "rating" not in read_pair(ITEMS, EVENTS, {"rating": None})[1] and "brand" not in read_pair(ITEMS, EVENTS, {"brand": None})[0]


def test_columns_are_mapped_by_one_name_or_by_several():
    items, events = (
        ITEMS.rename(columns={"item_id": "id", "brand": "store"}),
        EVENTS.rename(columns={"item_id": "outfit.id", "rating": "stars", "user_id": "customer.id"}),
    )
    a, b = read_pair(items, events, {"item_id": ["id", "outfit.id"], "brand": "store", "rating": "stars", "user_id": "customer.id"})
    assert a.values.tolist() == read_pair(ITEMS, EVENTS)[0].values.tolist() and b.values.tolist() == EVENTS.values.tolist()
    with pytest.raises(GTIError, match="items: no column 'asin' or 'sku', it has: 'id', 'title'"):
        read_pair(items, events, {"item_id": ["asin", "sku"]})
    with pytest.raises(GTIError, match="no column 'score'"):
        read_pair(ITEMS, EVENTS, {"rating": "score"})
    with pytest.raises(GTIError, match="no column 'store'"):
        read_pair(ITEMS, EVENTS, {"brand": "store"})
    with pytest.raises(GTIError, match="columns: name: got 'ratings'.*did you mean 'rating'"):
        read_pair(ITEMS, EVENTS, {"ratings": "rating"})


def test_a_dict_of_splits_and_other_things_are_refused():
    splits = datasets.DatasetDict(train=datasets.Dataset.from_pandas(ITEMS), test=datasets.Dataset.from_pandas(ITEMS))
    with pytest.raises(GTIError, match=r"items: got a DatasetDict of 'train', 'test'; pass one of them, as in data\['train'\]"):
        read_pair(splits, EVENTS)
    with pytest.raises(GTIError, match="interactions: got a list, allowed: a path, a DataFrame, a datasets.Dataset"):
        read_pair(ITEMS, [1, 2])


CSV = 'user_id,film,timestamp,note,rating\nu,1,10,"quoted\r\nline, breaks\n",4\n\nu,2,11,,3\n'  # the second event stands in line 6


@pytest.mark.parametrize(
    "bad, message",
    [
        ("u,,12,,1", r"column 'film': row 3 \(line 7\) has no id"),
        (" ,3,12,,1", r"column 'user_id': row 3 \(line 7\) has no id"),
        ("u,3,soon,,1", r"column 'timestamp': row 3 \(line 7\) is 'soon', expected a number or an ISO date"),
        ("u,3,,,1", r"column 'timestamp': row 3 \(line 7\) is nan"),
        ("u,3,12,,1,more", "line 7 has 6 cells, the header has 5"),
        ("u,3,12", "line 7 has 3 cells, the header has 5"),
        ('u,3,12,"open,1', "line 7 opens a quote that is not closed; pass quoting='none'"),
        ('u,3,12,"a" b,1', "line 7 opens a quote that is closed in the middle of a cell; pass quoting='none'"),
        ("u,3,12,a\rb,1", "line 7 has a carriage return in a cell without quotes"),
    ],
)
def test_the_line_is_that_of_an_editor(tmp_path, bad, message):
    columns = {"item_id": ["item_id", "film"]}
    (tmp_path / "e.csv").write_bytes(CSV.encode())
    assert len(read_pair(ITEMS, tmp_path / "e.csv", columns)[1]) == 2
    (tmp_path / "e.csv").write_bytes((CSV + bad + "\n").encode())
    with pytest.raises(GTIError, match=r"e\.csv.*" + message):
        read_pair(ITEMS, tmp_path / "e.csv", columns)


def test_the_line_in_other_formats(tmp_path):
    lines = [json.dumps(r) for r in EVENTS.to_dict("records")]
    (tmp_path / "e.jsonl").write_text("\n\n".join(lines).replace('"timestamp": 2', '"timestamp": "x"'))
    with pytest.raises(GTIError, match=r"e\.jsonl, column 'timestamp': row 3 \(line 5\) is 'x'"):
        read_pair(ITEMS, tmp_path / "e.jsonl")
    (tmp_path / "e.jsonl").write_text("\n\n".join([*lines, "[1]"]))
    with pytest.raises(GTIError, match=r"e\.jsonl: line 7 is not a JSON object"):
        read_table(tmp_path / "e.jsonl")
    (tmp_path / "e.jsonl").write_text("[" * 100_000)
    with pytest.raises(GTIError, match=r"e\.jsonl: line 1 is not valid JSON"):
        read_table(tmp_path / "e.jsonl")
    EVENTS.assign(item_id=["a", None, None]).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(GTIError, match=r"e\.parquet, column 'item_id': row 2 has no id \(and 1 more row\)"):
        read_pair(ITEMS, tmp_path / "e.parquet")
    write(EVENTS.assign(timestamp=["1", "2", "never"]), tmp_path / "e.inter")
    with pytest.raises(GTIError, match=r"e\.inter, column 'timestamp': row 3 \(line 4\) is 'never'"):
        read_pair(ITEMS, tmp_path / "e.inter")
    (tmp_path / "e.csv").write_text(
        EVENTS.assign(timestamp=["1", "2", "never"], note="x" * 200_000).to_csv(index=False)
    )  # a cell beyond what the csv module takes by itself
    with pytest.raises(GTIError, match=r"e\.csv, column 'timestamp': row 3 \(line 4\) is 'never'"):
        read_pair(ITEMS, tmp_path / "e.csv")


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.jsonl", "e.inter"])
def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path, name):
    good = write(pd.concat([EVENTS] * 5_000), tmp_path / name).read_bytes().split(b"\n")
    good[10_001] = good[10_001].replace(b"u", b"\xe9", 1).replace(b"w", b"\xe9", 1)
    (tmp_path / name).write_bytes(b"\n".join(good))
    with pytest.raises(GTIError, match=rf"{name}: line 10002 is not UTF-8 text"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.jsonl", "e.inter"])
def test_a_byte_order_mark_is_harmless(tmp_path, name):
    data = write(EVENTS, tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    assert list(read_table(tmp_path / name)) == list(EVENTS) and len(read_pair(ITEMS, tmp_path / name)[1]) == 3


def test_places_that_cannot_be_read(tmp_path):
    (tmp_path / "file.csv").write_text("x")
    with pytest.raises(GTIError, match="Not a directory"):
        read_table(tmp_path / "file.csv" / "items.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nowhere")
    with pytest.raises(GTIError, match="dangling.csv: No such file"):
        read_table(tmp_path / "dangling.csv")
    with pytest.raises(GTIError, match="a folder, expected a file"):
        read_table(tmp_path)
    with pytest.raises(GTIError, match="delimiter: got '::', allowed: one character"):
        read_table(tmp_path / "file.csv", "::")
    for name in ("e.csv", "e.tsv", "e.jsonl", "e.inter"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(GTIError, match=f"{name}: empty file"):
            read_table(tmp_path / name)
    (tmp_path / "e.parquet").write_bytes(b"")
    with pytest.raises(GTIError, match="e.parquet"):
        read_table(tmp_path / "e.parquet")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    write(EVENTS, tmp_path / "e.csv").chmod(0)
    with pytest.raises(GTIError, match="e.csv: Permission denied"):
        read_table(tmp_path / "e.csv")


@pytest.mark.parametrize("delimiter, shown", [(";", "';'"), ("\t", r"'\\t'"), ("|", r"'\|'")])
def test_the_wrong_delimiter_is_noticed_and_the_right_one_named(tmp_path, delimiter, shown):
    EVENTS.to_csv(tmp_path / "e.csv", index=False, sep=delimiter)
    with pytest.raises(GTIError, match=f"e.csv: one column .*the delimiter seems to be {shown}"):
        read_table(tmp_path / "e.csv")
    assert read_pair(ITEMS, tmp_path / "e.csv", delimiter=delimiter)[1].values.tolist() == EVENTS.values.tolist()
    EVENTS.to_csv(tmp_path / "e.csv", index=False)
    with pytest.raises(GTIError, match="the delimiter seems to be ','"):
        read_table(tmp_path / "e.csv", delimiter)


def ids(*values, **options):
    return read_pair(pd.DataFrame({"item_id": pd.Series(values, **options), "title": "t"}), EVENTS)[0].item_id.tolist()


def test_ids():
    assert (
        ids(1, 2, 10)
        == ids("1", " 2", "10 ")
        == ids(1.0, 2.0, 10.0)
        == ids("1.0", "2.00", "10")
        == ids(1, 2, 10, dtype="Int64")
        == ["1", "2", "10"]
    )
    assert ids("007", "7") == ["007", "7"] and ids("1.0", "x") == ["1.0", "x"] and ids("1.5", "2.0") == ["1.5", "2.0"]
    assert ids("a", "b", "a", dtype="category") == ["a", "b", "a"] and ids("é\u200d", "日本") == ["é\u200d", "日本"]
    with pytest.raises(GTIError, match="column 'item_id': row 2 holds several values, expected an id"):
        ids("a", ["b"], "c")
    for missing in (None, float("nan"), "", " \t", pd.NA):
        with pytest.raises(GTIError, match=r"row 2 has no id \(and 1 more row\)"):
            ids("a", missing, "c", missing)


@pytest.mark.parametrize(
    "value, text",
    [
        ("👩‍👩‍👧‍👦 🏳️‍🌈", "👩‍👩‍👧‍👦 🏳️‍🌈"),
        ("\u200fשלום \u202bעולם\u202c", "\u200fשלום \u202bעולם\u202c"),
        ("<a_1><|im_end|>", "<a_1><|im_end|>"),
        ("<b>Bold</b> &amp;", "<b>Bold</b> &amp;"),
        ("nul\x00 bell\x07 c1\x85\x9b", "nul bell c1"),
        ("a\u2028b\x1c\x0bc", "a b c"),
        ("\ufeffstart", "start"),
        ("half \ud83d", "half \ufffd"),
        ("\ud83d\ude00 in two parts", "😀 in two parts"),
        (["a", ["b", None], "\n"], "a, b"),
        (np.array(["x", "y"]), "x, y"),
        (None, ""),
        (float("nan"), ""),
        (pd.NaT, ""),
        (12, "12"),
        (True, "True"),
        ("x" * 300_000, "x" * 300_000),
    ],
)
def test_texts(value, text):
    items = pd.DataFrame({"item_id": ["a", "b"], "title": pd.Series([value, "other"], dtype=object)})
    assert read_pair(items, EVENTS)[0].title.tolist() == [text, "other"]


@pytest.mark.parametrize("value, kind", [({"a": 1}, "dict"), (b"raw", "bytes"), ([{"a": 1}], "dict"), ({"a"}, "set")])
def test_what_is_no_text(value, kind):
    items = pd.DataFrame({"item_id": ["a", "b"], "title": pd.Series(["fine", value], dtype=object)})
    with pytest.raises(GTIError, match=f"items, column 'title': row 2 holds a {kind}, expected text"):
        read_pair(items, EVENTS)


@pytest.mark.parametrize(
    "times, wanted",
    [
        (["3", "1", "2"], [3, 1, 2]),
        (["3.5", "1", "2"], [3.5, 1, 2]),
        ([3.0, 1.0, 2.0], [3, 1, 2]),
        (["1970-01-02", "1970-01-01T00:00:01", "1970-01-01T01:00:00+01:00"], [86400, 1, 0]),
        (pd.to_datetime(["1970-01-02", "1970-01-03", "1970-01-04"]), [86400, 172800, 259200]),
        (
            ["1700000000000000003", "1700000000000000001", "1700000000000000002"],
            [1700000000000000003, 1700000000000000001, 1700000000000000002],
        ),
    ],
)
def test_times(times, wanted):
    got = read_pair(ITEMS, EVENTS.assign(timestamp=times))[1].timestamp
    assert got.tolist() == wanted and got.dtype == ("float64" if 3.5 in wanted else "int64")


@pytest.mark.parametrize(
    "times", [["3", "2020-01-01", "2"], ["2020-01-01", "x", "2020-01-01"], [1, np.inf, 2], [1, None, 2], ["1", "", "2"]]
)
def test_times_of_two_kinds_are_refused(times):
    with pytest.raises(GTIError, match="interactions, column 'timestamp': row 2 is"):
        read_pair(ITEMS, EVENTS.assign(timestamp=times))
