"tables of random cells and files of random bytes: what was written comes back, or an error names the file; nothing else ever happens."

import csv
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data.folders import LATEST, LCREC, META_2014, REVIEWS, VIBRENT, lay
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gti_nb.core import GTIError
from gti_nb.data.columns import read_pair
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.data.sources import read_source
from gti_nb.data.tables import read_table

FIXED = settings(derandomize=True, deadline=None, max_examples=150)
FEWER = settings(FIXED, max_examples=60)


@pytest.fixture(scope="module")
def place():
    folder = Path(tempfile.mkdtemp())
    yield folder
    shutil.rmtree(folder)


awkward = st.sampled_from(
    ["a", "b c", "", '"', "'", ",", ";", "\t", "|", "\n", "\r", "\r\n", "\x00", "\\", "é", "😀", "\u2028", "\ufeff", "x, y"]
)
cells = st.lists(awkward, max_size=4).map("".join)


@st.composite
def tables(draw, cell=cells):
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=6))
    return pd.DataFrame(rows, columns=list("wxyz")[:width], dtype=object)


def came_back(frame: pd.DataFrame, written: pd.DataFrame, plain_end: bool) -> bool:
    "Whether a table is the one that was written; a carriage return before the line feed may be gone."
    got, want = frame.fillna("").values.tolist(), written.values.tolist()
    if plain_end:
        for rows in (got, want):
            for row in rows:
                row[-1] = row[-1].rstrip("\r")
    return list(frame) == list(written) and got == want


@FIXED
@given(tables(), st.sampled_from([",", "\t", ";", "|"]), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from([0, 1]), st.booleans())
@example(pd.DataFrame({"w": ["k1", "k2", "k3"], "x": ["Red\rBoat", "a", "b"]}), ",", "\n", 0, False)
def test_a_written_table_comes_back_or_is_refused_at_a_line(place, table, delimiter, line_end, quoting, mark):
    path = place / "t.csv"
    quoting = quoting or int(line_end == "\r")  # a cell "\n" without quotes after it would be the line end "\r\n"
    encoding = "utf-8-sig" if mark else "utf-8"
    table.to_csv(path, sep=delimiter, index=False, lineterminator=line_end, quoting=quoting, encoding=encoding)
    try:
        assert came_back(read_table(path, delimiter), table, line_end != "\r" and not quoting)
    except GTIError as e:
        assert "t.csv: line " in str(e) or "the delimiter seems to be" in str(e)
    try:
        assert came_back(
            read_table(path, delimiter, "csv"), table, line_end != "\r" and not quoting
        )  # as quotes are known to enclose cells
    except GTIError as e:
        assert "carriage return in a cell without quotes" in str(e) or "has" in str(e) or "delimiter seems" in str(e)


plain = st.lists(st.sampled_from(["a", "b", '"', "é", "'"]), min_size=1, max_size=3).map("".join)


@FIXED
@given(tables(plain), st.sampled_from([",", "\t", "|"]))
@example(pd.DataFrame([["k1", '"Heroes', "drama"], ["k2", "Bus", "comedy"], ["k3", '"Orders', "drama"]], columns=list("xyz")), "\t")
@example(pd.DataFrame([["k1", '"Heroes', "drama"], ["k2", 'Bus"', "comedy"], ["k3", "Orders", "drama"]], columns=list("xyz")), ",")
def test_quotes_that_are_ordinary_characters_never_swallow_a_row(place, table, delimiter):
    path = place / "t.tsv"
    table.insert(0, "id", [f"k{i}" for i in range(len(table))])
    lines = [delimiter.join(row) for row in [list(table), *table.values.tolist()]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert came_back(read_table(path, delimiter, "none"), table, False)
    try:
        assert read_table(path, delimiter)["id"].tolist() == table["id"].tolist()
    except GTIError as e:
        assert "t.tsv: line " in str(e) and "quoting='none'" in str(e)


@FIXED
@given(tables(st.sampled_from(["a", "b c", "", "é"])), st.data(), st.sampled_from([".csv", ".tsv", ".inter"]))
def test_a_row_with_a_cell_too_few_or_too_many_is_refused_at_its_line(place, table, data, suffix):
    path = place / f"t{suffix}"
    delimiter = "," if suffix == ".csv" else "\t"
    table.insert(0, "id", "k")
    rows = [list(table), *table.values.tolist()]
    bad = data.draw(st.integers(1, len(rows) - 1))
    rows[bad] = data.draw(st.sampled_from([rows[bad][:-1], [*rows[bad], ""], [*rows[bad], "more"]]))
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, delimiter=delimiter).writerows(rows)
    with pytest.raises(GTIError, match=rf"t{suffix}: line {bad + 1} has {len(rows[bad])} cells?, the header has {table.shape[1]}$"):
        read_table(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@FIXED
@given(st.lists(st.dictionaries(st.sampled_from(["item_id", "title", "x"]), values, min_size=1), min_size=1, max_size=4))
def test_json_lines_come_back(place, rows):
    path = place / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    got = read_table(path).to_dict("records")
    assert [json.dumps({k: row[k] for k in want}) for row, want in zip(got, rows, strict=True)] == [json.dumps(want) for want in rows]


@FIXED
@given(st.lists(st.lists(values, min_size=6, max_size=6), min_size=1, max_size=4))
@example([["a", ["b"], 2**64, float("inf"), "\ud83d", "2020-01-01"]])
@example([["\ud83d", None, 1e300, 10**400, {"a": 1}, "9" * 5000]])
def test_cells_of_any_kind_are_read_or_refused(rows):
    table = pd.DataFrame(rows, columns=["item_id", "title", "user_id", "timestamp", "rating", "categories"], dtype=object)
    try:
        items, events = read_pair(table, table)
    except GTIError as e:
        assert "column" in str(e) and "row" in str(e)
        return
    texts = [*items.values.ravel().tolist(), *events.user_id]
    assert all(isinstance(text, str) for text in texts) and "".join(texts).encode()
    assert len(items) == len(events) == len(rows) and events.timestamp.dtype.kind in "if"


HEADS = {
    ".csv": b"item_id,title\n",
    ".tsv": b"item_id\ttitle\n",
    ".item": b"item_id:token\ttitle:token\n",
    ".jsonl": b'{"item_id": 1, "title": ',
    ".parquet": b"PAR1",
}


@FEWER
@given(st.sampled_from(list(HEADS)), st.booleans(), st.binary(max_size=40))
def test_files_of_any_bytes_are_read_or_refused_by_name(place, suffix, head, data):
    path = place / f"t{suffix}"
    path.write_bytes(HEADS[suffix] * head + data)
    try:
        read_pair(path, pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]}))
    except GTIError as e:
        assert f"t{suffix}" in str(e)


FOLDERS = {
    "MovieLens latest": LATEST,
    "MovieLens 1M": {"movies.dat": "1::T (1995)::Drama\n", "ratings.dat": "1::1::5::9\n"},
    "LC-Rec": LCREC,
    "Amazon": {"reviews_B_5.json": REVIEWS, "meta_B.json": META_2014},
    "Vibrent": VIBRENT,
    "MovieLens 100K": {"u.item": "1|T (1995)|||" + "|0" * 18 + "|1\n", "u.data": "1\t1\t5\t9\n"},
    "Amazon 2023": {
        "meta_B.jsonl": [{"parent_asin": "a", "title": "A", "description": ["x"]}],
        "B.jsonl": [{"user_id": "u", "parent_asin": "a", "timestamp": 1, "rating": 5.0}],
    },
    "RecBole": {"x.item": "item_id:token\ttitle:token\n1\tA\n", "x.inter": "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\n"},
}
PUBLISHED = {
    "tables": {
        "items.csv": "item_id,title\na,A\nb,B\nc,\"['C', 'D']\"\n",
        "train.csv": "user_id,history_item_title,history_item_id,item_id\nu,['A'],['a'],b\n",
        "test.csv": "user_id,history_item_title,history_item_id,item_id\nu,\"['A', 'B']\",\"['a', 'b']\",c\n",
    },
    "lines": {"B.item.json": {i: {"title": i} for i in "abc"}, "train.txt": "u a b\n", "test.txt": "u c\n"},
    "objects": {
        "meta_B.jsonl": [{"parent_asin": i, "title": i} for i in "abc"],
        "train.json": {"u": ["a", "b"]},
        "test.json": '[{"user_id": "u", "target": "c", "title": "x"}]',
    },
    "atomic": {
        "B.item": "item_id:token\ttitle:token\na\tA\nb\tB\n",
        "B.train.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\nu\ta\tb\n",
        "B.test.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\nu\ta b\tb\n",
    },
}
BEIR = {
    "corpus.jsonl": [{"_id": "d", "title": "T", "text": "x"}],
    "queries.jsonl": [{"_id": "q", "text": "y"}],
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq\td\t1\n",
}
KINDS = (
    [(read_source, files) for files in FOLDERS.values()] + [(load_dataset, files) for files in PUBLISHED.values()] + [(load_queries, BEIR)]
)
CHANGES = [b'"', b"'", b"\r", b"\n", b"\t", b",", b";", b"::", b"[" * 2000, b"\xff", b"\\ud83d", b"\x00", b"", b"{", b"9" * 5000, b"null"]


@settings(FEWER, max_examples=250)
@given(st.sampled_from(KINDS), st.data())
def test_a_published_folder_with_one_change_is_read_or_refused(kind, data):
    load, files = kind
    with tempfile.TemporaryDirectory() as folder:
        lay(Path(folder), files)
        path = Path(folder) / data.draw(st.sampled_from(sorted(files)))
        content = path.read_bytes()
        at, removed = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 3))
        path.write_bytes(content[:at] + data.draw(st.sampled_from(CHANGES)) + content[at + removed :])
        try:
            load(folder)
        except GTIError as e:
            assert Path(folder).name in str(e)


@FEWER
@given(st.lists(st.tuples(values, values, values, values), min_size=1, max_size=3))
@example([("q", "text", "train", "[" * 5000)])
@example([("q", "text", "train", "['a', 1e400]")])
def test_query_tables_of_any_cells_are_read_or_refused(rows):
    queries = pd.DataFrame(rows, columns=["query_id", "query", "split", "item_ids"], dtype=object)
    qrels = pd.DataFrame({"query_id": queries["query_id"], "item_id": queries["item_ids"], "relevance": queries["query"]}, dtype=object)
    items = pd.DataFrame({"item_id": ["a"], "title": ["A"]})
    for tables in (dict(queries=queries.assign(split="train")), dict(queries=queries), dict(queries=queries, qrels=qrels)):
        try:
            load_queries(items=items, **tables)
        except GTIError:
            pass


def test_arrays_and_lists_of_one_text_are_the_same_text():
    items = pd.DataFrame({"item_id": ["a", "b"], "title": pd.Series([np.array(["x", "y"], dtype=object), ["x", "y"]], dtype=object)})
    events = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})
    assert read_pair(items, events)[0].title.tolist() == ["x, y", "x, y"]
