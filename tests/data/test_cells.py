"small inputs that once came out wrong: each is read right, or refused with its place and a mend."

import gzip
import json
import os
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.folders import LATEST, LCREC, META_2014, REVIEWS, VIBRENT, lay

from gti_nb import load_dataset
from gti_nb.core import GTIError, check_text
from gti_nb.data.columns import read_pair
from gti_nb.data.dataset import RecDataset
from gti_nb.data.queries import QueryDataset, load_queries
from gti_nb.data.sources import read_source
from gti_nb.data.tables import MAX_ROWS, read_table

ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"]})
EVENTS = pd.DataFrame({"user_id": ["u", "u", "u"], "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3]})


def file(folder, name: str, content: str | bytes):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# what a quote may swallow

HEROES = [["k1", '"Heroes', "drama"], ["k2", "Bus", "comedy"], ["k3", '"Orders', "drama"], ["k4", "Sun", "war"], ["k5", "Sea", "war"]]


@pytest.mark.parametrize("suffix, delimiter", [(".tsv", "\t"), (".csv", ","), (".csv", ";")])
@pytest.mark.parametrize("closing", ['"Orders', 'Orders"', "Orders"])
def test_a_stray_quote_is_refused_at_its_line_and_read_as_a_character_when_asked(tmp_path, suffix, delimiter, closing):
    rows = [["item_id", "title", "categories"], *([*row[:1], closing, *row[2:]] if row[0] == "k3" else row for row in HEROES)]
    path = file(tmp_path, f"items{suffix}", "".join(delimiter.join(row) + "\n" for row in rows))
    with pytest.raises(GTIError, match=rf"items{suffix}: line 2 opens a quote .*pass quoting='none'"):
        read_pair(path, EVENTS, delimiter=delimiter)
    items, _ = read_pair(path, EVENTS, delimiter=delimiter, quoting="none")
    assert items[["item_id", "title", "categories"]].values.tolist() == rows[1:]


def test_a_swallowed_row_is_refused_among_cells_that_are_quoted_for_a_reason(tmp_path):
    content = 'item_id,title,genre\nk0,"Red, blue",war\nk1,"Heroes,drama\nk2,Bus",comedy\nk3,"He said ""go""\nand went",war\n'
    path = file(tmp_path, "items.csv", content)
    with pytest.raises(GTIError, match="items.csv: line 3 opens a quote that takes in what look like rows, up to line 4; .*quoting='csv'"):
        read_table(path)
    assert read_table(path, quoting="csv").title.tolist() == ["Red, blue", "Heroes,drama\nk2,Bus", 'He said "go"\nand went']


def test_prose_of_several_lines_is_no_row(tmp_path):
    path = file(tmp_path, "items.csv", 'item_id,title\n1,"Wind\nrain, snow"\n2,"one\ntwo, three\n\nfour"\n')
    assert read_table(path).title.tolist() == ["Wind\nrain, snow", "one\ntwo, three\n\nfour"]


def test_quoting_passes_through_every_loader(tmp_path):
    titles = ['"Heroes', "Bus", 'Orders"']
    items = "item_id,title,description\n" + "".join(f"{i},{t},d\n" for i, t in zip("abc", titles, strict=True))
    events = "user_id,item_id,timestamp\nu,a,1\nu,b,2\nu,c,3\n"
    lay(tmp_path / "tables", {"items.csv": items, "interactions.csv": events})
    with pytest.raises(GTIError, match="quoting='none'"):
        load_dataset(tmp_path / "tables", k_core=0)
    assert load_dataset(tmp_path / "tables", k_core=0, quoting="none").items.title.tolist() == titles
    paths = [tmp_path / "tables" / name for name in ("items.csv", "interactions.csv")]
    assert load_dataset(items=paths[0], interactions=paths[1], k_core=0, quoting="none").items.title.tolist() == titles
    queries = pd.DataFrame({"query_id": ["q"], "query": ["x"], "item_ids": ["a"], "split": ["test"]})
    assert load_queries(items=paths[0], queries=queries, quoting="none").items.title.tolist() == titles
    lay(
        tmp_path / "atomic",
        {"x.item": 'item_id:token\ttitle:token\n1\t"A\tb"\n', "x.inter": "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\n"},
    )
    with pytest.raises(GTIError, match="x.item: line 2 has 3 cells, the header has 2"):
        read_source(tmp_path / "atomic")
    assert read_source(tmp_path / "atomic", quoting="csv")[0].title.tolist() == ["A b"]
    with pytest.raises(GTIError, match="quoting: a folder of MovieLens latest, 25M has known columns"):
        read_source(lay(tmp_path / "latest", LATEST), quoting="none")
    with pytest.raises(GTIError, match="quoting: got 'all', allowed: None, 'csv', 'none'"):
        read_table(paths[0], quoting="all")


# lines


def test_a_bare_carriage_return_makes_no_item(tmp_path):
    table = pd.DataFrame({"item_id": ["k1", "k2", "k3"], "title": ["Red\rBoat", "a", "b"], "categories": ["x", "y", "z"]})
    for name, sep in (("items.csv", ","), ("items.tsv", "\t"), ("x.item", "\t")):
        (tmp_path / name).write_bytes(
            f"item_id{sep}title{sep}categories\nk1{sep}Red\rBoat{sep}x\nk2{sep}a{sep}y\nk3{sep}b{sep}z\n".encode()
        )
        with pytest.raises(GTIError, match=f"{name}: line 2 has a carriage return in a cell without quotes"):
            read_pair(tmp_path / name, EVENTS)
    table.to_csv(tmp_path / "items.csv", index=False, quoting=1)
    assert read_pair(tmp_path / "items.csv", EVENTS)[0].title.tolist() == ["Red Boat", "a", "b"]
    table.to_json(tmp_path / "items.jsonl", orient="records", lines=True)
    assert read_pair(tmp_path / "items.jsonl", EVENTS)[0].title.tolist() == ["Red Boat", "a", "b"]
    (tmp_path / "mac.csv").write_bytes(b"item_id,title\rk1,Red\rk2,Blue\r")
    assert read_table(tmp_path / "mac.csv").values.tolist() == [["k1", "Red"], ["k2", "Blue"]]
    lay(tmp_path / "ml", {"movies.dat": "1::Red\rBoat (1995)::War\n2::Sun (1996)::War\r\n", "ratings.dat": "1::1::5::9\n"})
    assert read_source(tmp_path / "ml")[0].title.tolist() == ["Red Boat", "Sun"]


SHORT = {
    "interactions.csv": ("user_id,item_id,timestamp\nu,a\n", {"items.csv": "item_id,title\na,A\n"}),
    "interactions.tsv": ("user_id\titem_id\ttimestamp\nu\ta\n", {"items.csv": "item_id,title\na,A\n"}),
    "x.inter": ("user_id:token\titem_id:token\ttimestamp:float\nu\ta\n", {"x.item": "item_id:token\ttitle:token\na\tA\n"}),
    "ratings.csv": ("userId,movieId,rating,timestamp\n1,1,5\n", {"movies.csv": LATEST["movies.csv"]}),
    "ratings.dat": ("1::1::5\n", {"movies.dat": "1::T (1995)::Drama\n"}),
    "user_activity_triplets.csv": ("customer.id;outfit.id;rentalPeriod.start;rentalPeriod.end\nc;outfit.aa;2021-05-03\n", VIBRENT),
    "movies.csv": ("movieId,title,genres\n1,T\n", {"ratings.csv": LATEST["ratings.csv"]}),
    "x.item": ("item_id:token\ttitle:token\tbrand:token\na\tA\n", {"x.inter": "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\n"}),
    "outfits.csv": (VIBRENT["outfits.csv"].replace(";;;;[];\n", ";;;[]\n"), VIBRENT),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_line_with_too_few_cells_is_refused_in_every_layout(tmp_path, name):
    content, others = SHORT[name]
    lay(tmp_path, others | {name: content})
    with pytest.raises(GTIError, match=rf"{name}: line \d+ (has \d+ cells, the header has|does not have 4 cells)"):
        read_source(tmp_path)


# ids


def big_ids(kind: str) -> pd.DataFrame:
    "Two ids that one float of this kind stands for."
    first = {"float64": 9007199254740992, "Float64": 9007199254740992, "float32": 16777216, "float16": 2048}[kind]
    return pd.DataFrame({"item_id": pd.array([first + 1, first], dtype="int64").astype(kind), "title": ["A", "B"]})


@pytest.mark.parametrize("kind", ["float64", "Float64", "float32", "float16"])
def test_float_ids_that_lost_their_last_digits_are_refused(kind):
    with pytest.raises(GTIError, match="items, column 'item_id': row 1 is .*a rounded number .*read or save the ids as text"):
        read_pair(big_ids(kind), EVENTS)
    smaller = big_ids(kind).assign(item_id=pd.Series([2047, 12], dtype=kind))
    assert read_pair(smaller, EVENTS)[0].item_id.tolist() == ["2047", "12"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_float_ids_in_files(tmp_path, suffix):
    def written(table: pd.DataFrame):
        path = tmp_path / f"items{suffix}"
        if suffix == ".parquet":
            table.to_parquet(path)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
        else:
            table.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
        return path

    for large in (9007199254740993.0, 1e16, 123456789012345678.0):
        with pytest.raises(GTIError, match="column 'item_id': row 2 .*a rounded number"):
            read_pair(written(pd.DataFrame({"item_id": [7.0, large], "title": ["A", "B"]})), EVENTS)
    whole = pd.DataFrame({"item_id": [9007199254740993, 9007199254740992], "title": ["A", "B"]})
    assert read_pair(written(whole), EVENTS)[0].item_id.tolist() == ["9007199254740993", "9007199254740992"]


def test_ids_beside_a_missing_one_stay_exact(tmp_path):
    rows = [{"item_id": 9007199254740993, "title": "A"}, {"item_id": 9007199254740992, "title": None}, {"title": "C"}]
    path = file(tmp_path, "items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(GTIError, match=r"items.jsonl, column 'item_id': row 3 \(line 3\) has no id"):
        read_pair(path, EVENTS)
    path = file(tmp_path, "items.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert read_pair(path, EVENTS)[0].item_id.tolist() == ["9007199254740993", "9007199254740992"]


@pytest.mark.parametrize("value, message", [(b"raw", "holds bytes"), (float("inf"), "is inf"), ([["a"]], "holds several values")])
def test_what_is_no_id(value, message):
    with pytest.raises(GTIError, match=f"column 'item_id': row 2 .*{message}"):
        read_pair(pd.DataFrame({"item_id": pd.Series(["a", value], dtype=object), "title": "t"}), EVENTS)


# columns


def test_columns_by_number_and_columns_of_one_name():
    items, events = pd.DataFrame([["A", "a"], ["B", "b"]]), pd.DataFrame([["u", "a", 1], ["u", "b", 2]])
    columns = {"user_id": 0, "item_id": 1, "title": 0, "timestamp": 2}
    a, b = read_pair(items, events, columns)
    assert a[["item_id", "title"]].values.tolist() == [["a", "A"], ["b", "B"]] and b.values.tolist() == [["u", "a", 1], ["u", "b", 2]]
    assert read_pair(items, events, columns | {"item_id": [9, 1]})[0].item_id.tolist() == ["a", "b"]
    with pytest.raises(GTIError, match="items: no column 7, it has: 0, 1; pass columns="):
        read_pair(items, events, columns | {"title": 7})
    twice = pd.DataFrame([["a", "A", "x"]], columns=["item_id", "title", "title"])
    with pytest.raises(GTIError, match="items: 2 columns are named 'title'; rename or remove all but one"):
        read_pair(twice, EVENTS)
    assert read_pair(twice.set_axis(["item_id", "title", "x"], axis=1).assign(y=1), EVENTS)[0].title.tolist() == ["A"]
    with pytest.raises(GTIError, match="interactions: 3 columns are named 'item_id'"):
        read_pair(ITEMS, EVENTS.set_axis(["item_id"] * 3, axis=1), {"user_id": "item_id", "timestamp": None})


def test_columns_of_one_name_in_files(tmp_path):
    path = file(tmp_path, "items.csv", "item_id,title,title,note,note\na,A,B,x,y\n")
    with pytest.raises(GTIError, match="items.csv: 2 columns are named 'title'"):
        read_pair(path, EVENTS)
    path = file(tmp_path, "items.csv", "item_id,title,note,note\na,A,x,y\n")
    assert read_pair(path, EVENTS)[0].title.tolist() == ["A"]  # nobody asked for the notes
    path = file(tmp_path, "items.jsonl", '{"item_id": "a", "title": "A"}\n{"item_id": "b", "item_id": "c"}\n')
    with pytest.raises(GTIError, match="items.jsonl: line 2 is not valid JSON: the key 'item_id' occurs twice"):
        read_table(path)
    lay(tmp_path / "v", VIBRENT | {"outfits.csv": VIBRENT["outfits.csv"].replace(";group;owner;", ";group;group;")})
    with pytest.raises(GTIError, match="outfits.csv: 2 columns are named 'group'"):
        read_source(tmp_path / "v")
    lay(tmp_path / "l", LCREC | {"Instruments.item.json": '{"0": {"title": "A"}, "0": {"title": "B"}}'})
    with pytest.raises(GTIError, match="Instruments.item.json: .*the key '0' occurs twice"):
        read_source(tmp_path / "l")


@pytest.mark.parametrize("columns", [{"item_id": 1.5}, {"item_id": None}, {"item_id": []}, {"item_id": {}}, {"item_id": True}, ["a"], "x"])
def test_columns_that_name_nothing_are_refused(columns):
    with pytest.raises(GTIError, match="^columns"):
        read_pair(ITEMS, EVENTS, columns)


def test_a_list_of_columns_for_one_role_in_three_tables():
    tables = {
        "items": pd.DataFrame({"_id": ["d1", "d2"], "title": ["A", "B"], "metadata": [{}, {}]}),
        "queries": pd.DataFrame({"_id": ["q1", "q2"], "text": ["one", "two"], "metadata": [{}, {}]}),
        "qrels": pd.DataFrame({"query-id": ["q1", "q2"], "corpus-id": ["d1", "d2"], "score": [1, 2]}),
    }
    columns = {"item_id": ["_id", "corpus-id"], "query_id": ["_id", "query-id"], "query": "text", "relevance": "score"}
    data = load_queries(**tables, columns=columns)
    assert [r.tolist() for r in data.relevant] == [[0], [1]] and [g.tolist() for g in data.grades] == [[1], [2]]
    with pytest.raises(GTIError, match="queries: no column 'query_id', it has: '_id', 'text'"):
        load_queries(**tables, columns={"item_id": ["_id", "corpus-id"]})


# ratings and times


@pytest.mark.parametrize("empty", ["", "good", "nan", "inf"])
def test_a_rating_that_is_none_is_dropped_and_counted(tmp_path, empty):
    rows = "".join(
        f"u,{item},{time},{rating}\n" for time, (item, rating) in enumerate([("a", 5), ("b", empty), ("c", 4), ("d", 5), ("e", 1)])
    )
    events = file(tmp_path, "events.csv", "user_id,item_id,timestamp,rating\n" + rows)
    items = pd.DataFrame({"item_id": list("abcde"), "title": list("ABCDE")})
    data = load_dataset(items=items, interactions=events, k_core=0, min_rating=4)
    assert data.report["events dropped: rating below 4, or none"] == 2 and len(data.sequences[0]) == 3
    assert len(load_dataset(items=items, interactions=events, k_core=0).sequences[0]) == 5  # no rule asks for ratings


def test_reviews_without_a_rating(tmp_path):
    reviews = [{"reviewerID": "A", "asin": f"{i}", "unixReviewTime": i} | ({"overall": 5.0} if i else {}) for i in range(4)]
    lay(tmp_path, {"reviews_B_5.json": reviews, "meta_B.json": [{"asin": f"{i}", "title": f"T{i}"} for i in range(4)]})
    data = load_dataset(tmp_path, k_core=0, min_rating=4)
    assert data.report["events dropped: rating below 4, or none"] == 1 and data.n_items == 4


def test_a_column_without_a_single_rating_is_another_column():
    with pytest.raises(GTIError, match="column 'rating': row 1 is 'good', and no row has a number; pass columns={'rating': None}"):
        read_pair(ITEMS, EVENTS.assign(rating=["good", None, "bad"]))
    assert read_pair(ITEMS, EVENTS.assign(rating=[None, "", np.nan]), {"rating": None})[1].shape == (3, 3)


LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    "times",
    [
        np.array([2**64 - 1, 1, 2], dtype="uint64"),
        pd.array([2**64 - 1, 1, 2], dtype="UInt64"),
        pd.array([2**64 - 1, 1, 2], dtype=pd.ArrowDtype(pa.uint64())),
        pd.Series([2**64 - 1, 1, 2], dtype=object),
        ["18446744073709551615", "1", "2"],
        pd.Series([2**63, -1, 2], dtype=object),
        [1e300, 1, 2],
        ["1e300", "1", "2"],
        pd.Series([-(2**63) - 1, 1, 2], dtype=object),
        pd.Series([2**70, 1, 2], dtype=object),
    ],
)
def test_times_beyond_64_bits_are_refused(times):
    with pytest.raises(GTIError, match=f"interactions, column 'timestamp': row 1 is .*, beyond the largest time, {LARGEST}"):
        read_pair(ITEMS, EVENTS.assign(timestamp=times))


@pytest.mark.parametrize(
    "times, read",
    [
        ([LARGEST, -1, -LARGEST - 1], [LARGEST, -1, -LARGEST - 1]),
        (np.array([LARGEST, 1, 2], dtype="uint64"), [LARGEST, 1, 2]),
        (["-5", "-1.5", "3"], [-5, -1.5, 3]),
        (["9999-12-31", "1969-12-31", "0001-01-01"], [253402214400, -86400, -62135596800]),
    ],
)
def test_times_at_the_edges_are_kept(times, read):
    assert read_pair(ITEMS, EVENTS.assign(timestamp=times))[1].timestamp.tolist() == read


# nesting

DEEP = "[" * 900 + "]" * 900


def json_line(row: dict) -> str:
    "A JSON object of values that are JSON already."
    return "{" + ", ".join(f'"{key}": {value}' for key, value in row.items()) + "}\n"


@pytest.mark.parametrize("column, reason", [("title", "holds lists nested more than 20 deep"), ("item_id", "holds several values")])
def test_deep_lists_in_items(tmp_path, column, reason):
    row = {"item_id": '"a"', "title": '"A"'} | {column: DEEP}
    path = file(tmp_path, "items.jsonl", '{"item_id": "b"}\n' + json_line(row))
    with pytest.raises(GTIError, match=rf"items.jsonl, column '{column}': row 2 \(line 2\) {reason}"):
        read_pair(path, EVENTS)


@pytest.mark.parametrize("column", ["user_id", "timestamp"])
def test_deep_lists_in_interactions(tmp_path, column):
    row = {"user_id": '"u"', "item_id": '"a"', "timestamp": "1"} | {column: DEEP}
    path = file(tmp_path, "e.jsonl", json_line(row))
    with pytest.raises(GTIError, match=rf"e.jsonl, column '{column}': row 1 \(line 1\) "):
        read_pair(ITEMS, path)


def test_deep_lists_in_published_layouts(tmp_path):
    lay(tmp_path / "l", LCREC | {"Instruments.item.json": json_line({"0": json_line({"title": DEEP})})})
    with pytest.raises(GTIError, match="Instruments.item.json, column 'title': row 1 holds lists nested more than 20 deep"):
        read_source(tmp_path / "l")
    lay(tmp_path / "a", {"reviews_B_5.json": REVIEWS, "meta_B.json": json_line({"asin": '"0001"', "title": DEEP})})
    with pytest.raises(GTIError, match="meta_B.json: line 1 holds lists nested more than 20 deep"):
        read_source(tmp_path / "a")
    (tmp_path / "a" / "meta_B.json").write_text(json_line({"asin": '"0001"', "title": "9" * 5000}))
    with pytest.raises(GTIError, match="meta_B.json: line 1 is neither a JSON object nor a Python literal"):
        read_source(tmp_path / "a")


# what a file may expand to


def peak_of(call) -> int:
    "Most bytes that Python held during a call that is refused."
    tracemalloc.start()
    try:
        with pytest.raises(GTIError, match="refused"):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def parquet_of(path, column: pa.Array, repeats: int):
    "A parquet file of many small row groups."
    table = pa.table({"user_id": column})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(repeats):
            writer.write_table(table)
    return path


BOMBS = {
    "rows": (pa.array(np.zeros(4_000_000, np.int64)), 4),
    "rows of nothing": (pa.nulls(4_000_000, pa.int64()), 4),
    "a long text": (pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), ["x" * 1_000_000]), 1),
    "lists": (pa.array([["x" * 100_000]] * 10).take(pa.array(np.zeros(1000, np.int32))), 1),
    "empty lists": (pa.array([[]] * 1_000_000, pa.list_(pa.string())), 1),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_parquet_that_expands_absurdly_is_refused_before_memory_goes(tmp_path, kind):
    path = parquet_of(tmp_path / "e.parquet", *BOMBS[kind])
    before = pa.total_allocated_bytes()
    assert peak_of(lambda: read_table(path)) < 2**26
    assert pa.total_allocated_bytes() - before < 2**26 and path.stat().st_size < 2**20


def test_parquet_of_too_many_rows_is_refused_by_its_footer(tmp_path, monkeypatch):
    path = parquet_of(tmp_path / "e.parquet", pa.array(np.arange(1000)), 3)
    assert len(read_table(path)) == 3000
    monkeypatch.setattr("gti_nb.data.tables.MAX_ROWS", 2999)
    with pytest.raises(GTIError, match="e.parquet: 3,000 rows, allowed: up to 2,999; refused"):
        read_table(path)
    assert MAX_ROWS == 134_217_728


def test_parquet_as_people_have_it_is_not_refused(tmp_path):
    rng = np.random.default_rng(0)
    n = 300_000
    table = pd.DataFrame(
        {
            "user_id": np.sort(rng.integers(0, 5000, n)).astype(str),
            "item_id": rng.integers(0, 2000, n).astype(str),
            "timestamp": np.sort(rng.integers(10**9, 2 * 10**9, n)),
            "rating": 5.0,
            "source": "a constant text that every row repeats",
        }
    )
    table.to_parquet(tmp_path / "e.parquet", compression="zstd")
    assert read_table(tmp_path / "e.parquet").equals(table)


def test_json_lines_with_a_column_for_every_row_are_refused(tmp_path):
    path = file(tmp_path, "e.jsonl", "".join(f'{{"{i}":0}}\n' for i in range(20_000)))
    assert peak_of(lambda: read_table(path)) < 2**26


def test_packed_reviews_share_the_limit(tmp_path):
    lay(tmp_path, {"meta_B.json.gz": META_2014, "reviews_B_5.json.gz": REVIEWS})
    (tmp_path / "meta_B.json.gz").write_bytes(gzip.compress((b" " * 2**20 + b"\n") * 70))
    assert peak_of(lambda: read_source(tmp_path)) < 2**27


# broken Unicode

HALF = "\ud83d"


def test_half_an_emoji_in_a_title_is_marked_and_counted(tmp_path):
    titles = [f"Cut {HALF}", "Whole 😀", "\ud83d\ude00 in halves"]
    wanted = ["Cut \ufffd", "Whole 😀", "😀 in halves"]
    lines = [json.dumps({"item_id": i, "title": t}) for i, t in zip("abc", titles, strict=True)]
    path = file(tmp_path, "items.jsonl", "\n".join(lines))
    frame = ITEMS.assign(title=pd.Series(titles, dtype=object))
    for source in (path, frame):
        data = load_dataset(items=source, interactions=EVENTS, k_core=0)
        assert data.items.title.tolist() == wanted
        assert data.report["items kept: text with a broken character, shown as \ufffd"] == 1
        assert "shown as \ufffd" in data.report_table().to_string()
    assert data.save(tmp_path / "saved") and load_dataset(tmp_path / "saved").content_hash == data.content_hash
    assert not any("broken" in key for key in load_dataset("toy").report)


def test_half_an_emoji_in_published_layouts(tmp_path):
    lay(tmp_path / "l", LCREC | {"Instruments.item.json": json.dumps({"0": {"title": f"Pick {HALF}"}, "1": {}, "2": {}})})
    assert read_source(tmp_path / "l")[0].title.tolist() == ["Pick \ufffd", "", ""]
    meta = [json.dumps({"asin": "0001", "title": f"Soap {HALF}"}), repr({"asin": "0002", "title": "Two \ud83d\ude00"})]
    lay(tmp_path / "a", {"reviews_B_5.json": REVIEWS, "meta_B.json": "\n".join(meta)})
    assert read_source(tmp_path / "a")[0].title.tolist() == ["Soap \ufffd", "Two 😀"]
    lay(tmp_path / "l", {"Instruments.inter.json": json.dumps({f"u{HALF}": [0, 1]})})
    with pytest.raises(GTIError, match=r"Instruments.inter.json, column 'user_id': row 1 is 'u\\ud83d', which holds half a character"):
        read_source(tmp_path / "l")


def test_half_an_emoji_in_an_id_is_refused_at_its_row(tmp_path):
    path = file(tmp_path, "items.jsonl", "".join(json.dumps({"item_id": i, "title": "T"}) + "\n" for i in ("a", f"b{HALF}")))
    with pytest.raises(GTIError, match=r"items.jsonl, column 'item_id': row 2 \(line 2\) is 'b\\ud83d', which holds half a character"):
        read_pair(path, EVENTS)
    with pytest.raises(GTIError, match="interactions, column 'user_id': row 3 is"):
        read_pair(ITEMS, EVENTS.assign(user_id=pd.Series(["u", "u", HALF], dtype=object)))


def test_half_an_emoji_in_queries():
    queries = pd.DataFrame({"query_id": ["q"], "query": pd.Series([f"red {HALF}"], dtype=object), "item_ids": ["a"], "split": ["test"]})
    data = load_queries(items=ITEMS, queries=queries)
    assert data.queries["query"].tolist() == ["red \ufffd"]
    assert data.report["queries kept: text with a broken character, shown as \ufffd"] == 1
    with pytest.raises(GTIError, match="column 'query_id': row 1 is"):
        load_queries(items=ITEMS, queries=queries.assign(query_id=pd.Series([HALF], dtype=object)))
    with pytest.raises(GTIError, match="queries, column 'item_ids'"):
        load_queries(items=ITEMS, queries=queries.assign(item_ids=pd.Series([[HALF]], dtype=object)))


def test_half_an_emoji_in_a_data_set_made_by_hand():
    items = ITEMS.assign(description="", categories="", title=pd.Series(["A", HALF, "C"], dtype=object))
    with pytest.raises(GTIError, match=r"RecDataset: items, column 'title', row 2: got '\\ud83d'"):
        RecDataset(items, [[0, 1]], ["u"])
    good = items.assign(title="T")
    with pytest.raises(GTIError, match="RecDataset: user id: got"):
        RecDataset(good, [[0, 1]], [HALF])
    queries = pd.DataFrame({"query_id": ["q"], "query": pd.Series([HALF], dtype=object), "split": ["test"]})
    with pytest.raises(GTIError, match="QueryDataset: query: got"):
        QueryDataset(good, queries, [[0]], [[1]])


def test_half_an_emoji_in_a_parameter():
    with pytest.raises(GTIError, match=r"name: got 'x\\ud83d', which holds half a character"):
        check_text("name", {"a": ["x", ("x\ud83d",)]})
    assert check_text("name", {"é": [1, None, "😀"]}) == {"é": [1, None, "😀"]}


def test_parquet_texts_that_are_not_utf8_are_refused_with_their_rows(tmp_path):
    offsets, data = np.array([0, 1, 2], np.int32), b"a\xff"
    broken = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": broken}), tmp_path / "items.parquet")
    with pytest.raises(GTIError, match="items.parquet: rows 1 to 2 cannot be read: .*UTF8"):
        read_pair(tmp_path / "items.parquet", EVENTS)
    with pytest.raises(GTIError, match="items, column 'title': holds text that is not UTF-8"):
        read_pair(pa.table({"item_id": ["a", "b"], "title": broken}), EVENTS)


# places


@pytest.mark.parametrize("place", ["x" * 300, "x" * 300 + ".csv", "~nobody_here/x.csv", "a\0b.csv", "\ud83d.csv", "", "[[["])
@pytest.mark.parametrize("load", [load_dataset, load_queries, read_table])
def test_places_that_no_file_system_has(load, place):
    with pytest.raises(GTIError):
        load(place)


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "e.csv")
    with pytest.raises(GTIError, match="e.csv: a device or a pipe, expected a file"):
        read_table(tmp_path / "e.csv")


def test_a_saved_data_set_that_expands_absurdly_is_damaged(tmp_path):
    load_dataset("toy").save(tmp_path / "saved")
    parquet_of(tmp_path / "saved" / "items.parquet", *BOMBS["rows"])
    about = json.loads((tmp_path / "saved" / "dataset.json").read_text())
    lay(
        tmp_path / "saved", {"dataset.json": {k: v for k, v in about.items() if k not in ("files", "seal")}}
    )  # as earlier versions wrote it
    with pytest.raises(GTIError, match="saved: damaged, .*items.parquet: unpacks to more than 200 times"):
        load_dataset(tmp_path / "saved")
