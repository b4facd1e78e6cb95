"hostile cells in published splits, BEIR, MovieLens-100K and Amazon 2023: read right, or refused with their place."

import gzip
import json

import pandas as pd
import pytest
from data.folders import lay

from gti_nb.core import GTIError
from gti_nb.core.literals import python_literal
from gti_nb.data.cleaning import clean_items
from gti_nb.data.dataset import Loading, load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.data.query_tables import is_query_folder
from gti_nb.data.questions import Questions, check_questions
from gti_nb.data.sources import published_source, read_source
from gti_nb.tokenize import load_catalogue

HALF = "\ud83d"
ITEMS = "item_id,title\n" + "".join(f"{i},Title {i}\n" for i in "abcd")
TRAIN, TEST = "user_id,history,item_id\nu,['a'],b\n", "user_id,history,item_id\nu,\"['a', 'b']\",c\n"
SPLIT = {"items.csv": ITEMS, "train.csv": TRAIN, "test.csv": TEST}
LINES = {"items.csv": ITEMS, "train.txt": "u a b\n", "test.txt": "u c\n"}


def split_with(**files: str) -> dict:
    return SPLIT | {f"{name}.csv": content for name, content in files.items()}


def asked(data) -> list:
    return [targets.tolist() for targets in data.questions.targets]


# parts of a published split


@pytest.mark.parametrize(
    "files, message",
    [
        (
            split_with(train='user_id,title,history,item_id\nu,"Heroes,a,b\nv,"Bus,a,c\n'),
            "train.csv: line 2 opens a quote .*quoting='none'",
        ),
        (split_with(train="user_id,history,item_id\nu,a\n"), "train.csv: line 2 has 2 cells, the header has 3"),
        (split_with(train="user_id,history,item_id\nu,a,b,c\n"), "train.csv: line 2 has 4 cells, the header has 3"),
        (split_with(train="user_id,history,item_id\nu,a\rb,c\n"), "train.csv: line 2 has a carriage return"),
        (split_with(train="user_id,history,item_id,item_id\nu,a,b,c\n"), "train.csv: 2 columns are named 'item_id'"),
        (
            split_with(train="user_id,history,item_id\nu,['a' 'b'],c\n"),
            r"train.csv, column 'history': row 1 \(line 2\) is .*expected a list",
        ),
        (split_with(train=f"user_id,history,item_id\nu,{'[' * 900},c\n"), r"train.csv, column 'history': row 1 \(line 2\) is"),
        (split_with(train=f"user_id,history,item_id\nu,[{'9' * 5000}],c\n"), r"train.csv, column 'history': row 1 \(line 2\) is"),
        (
            split_with(train='user_id,history,item_id\nu,"[""a"", ""\\ud83d""]",c\n'),
            "train.csv, column 'history': row 1 .*half a character",
        ),
        (split_with(train='user_id,history,item_id\nu,"[9007199254740993.0]",c\n'), "train.csv, column 'history': row 1 .*rounded number"),
        (LINES | {"train.txt": "u a b\rv c\r"}, "train.txt: line 1 has a carriage return inside it"),
        (LINES | {"train.txt": "x a\nu a b\rv c\n"}, "train.txt: line 2 has a carriage return inside it"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_at_its_line(tmp_path, files, message):
    with pytest.raises(GTIError, match=message):
        load_dataset(lay(tmp_path, files))


def test_lines_that_end_as_on_windows_are_read(tmp_path):
    data = load_dataset(lay(tmp_path, LINES | {"train.txt": "u a b\r\n\r\n", "test.txt": "u c\r\n"}))
    assert [s.tolist() for s in data.sequences] == [[0, 1]] and asked(data) == [[2]]


def test_quotes_are_characters_when_asked(tmp_path):
    parts = {name: SPLIT[f"{name}.csv"].replace("history", "said,history").replace("u,", 'u,"Hey,') for name in ("train", "test")}
    lay(tmp_path, split_with(train=parts["train"], test="user_id,said,history,item_id\nu,Hey,a b,c\n"))
    with pytest.raises(GTIError, match="train.csv: line 2 opens a quote"):
        load_dataset(tmp_path)
    data = load_dataset(tmp_path, quoting="none")
    assert [s.tolist() for s in data.sequences] == [[0, 1]] and asked(data) == [[2]]
    assert load_catalogue(tmp_path, Loading(quoting="none")).content_hash == data.content_hash
    data.save(tmp_path / "saved")
    with pytest.raises(GTIError, match="leave columns, delimiter and quoting out"):
        load_dataset(tmp_path / "saved", quoting="none")


def test_half_an_emoji_beside_the_ids_of_a_json_part_does_no_harm(tmp_path):
    rows = [{"user_id": "u", "history": ["a"], "history_title": [f"T {HALF}"], "item_id": "b"}]
    files = {name: content for name, content in SPLIT.items() if name != "train.csv"}
    data = load_dataset(lay(tmp_path, files | {"train.json": json.dumps(rows)}))
    assert [s.tolist() for s in data.sequences] == [[0, 1]]
    lay(tmp_path, {"train.json": json.dumps({f"u{HALF}": ["a", "b"]})})
    with pytest.raises(GTIError, match="train.json, column 'user_id': row 1 .*half a character"):
        load_dataset(tmp_path)


def test_a_json_part_with_a_column_for_every_row_is_refused(tmp_path):
    rows = "[" + ",".join(f'{{"{i}":0}}' for i in range(20_000)) + "]"
    with pytest.raises(GTIError, match="train.json: unpacks to more than 200 times"):
        load_dataset(lay(tmp_path, {"items.csv": ITEMS, "train.json": rows, "test.txt": "u c\n"}))


@pytest.mark.parametrize("columns", [{"item_id": 1.5}, {"history": {}}, {"title": True}, ["a"], "x"])
def test_columns_that_name_nothing_are_refused(tmp_path, columns):
    with pytest.raises(GTIError, match="^columns"):
        load_dataset(lay(tmp_path, SPLIT), columns=columns)


def test_columns_by_number(tmp_path):
    folder = lay(tmp_path, {"items.csv": ITEMS})
    for part, row in {"train": ["u", ["a", "b"]], "test": ["u", ["c"]]}.items():
        pd.DataFrame([row]).to_json(folder / f"{part}.jsonl", orient="records", lines=True)
    with pytest.raises(GTIError, match="train.jsonl: no column 'user_id', it has: '0', '1'; pass columns="):
        load_dataset(folder, columns={"user_id": 0, "item_id": 1})
    data = load_dataset(folder, columns={"user_id": "0", "item_id": ["1", "item_id"]})
    assert [len(s) for s in data.sequences] == [2]


# items of a published split


def test_item_tables_beside_the_parts(tmp_path):
    parts = {name: content for name, content in LINES.items() if name != "items.csv"}
    data = load_dataset(lay(tmp_path / "json", parts | {"B.item.json": json.dumps({i: {"title": f"T {HALF}"} for i in "abc"})}))
    assert data.items.title.tolist() == ["T \ufffd"] * 3
    assert data.report["items kept: text with a broken character, shown as \ufffd"] == 3
    lay(tmp_path / "json", {"B.item.json": '{"a": {"title": ' + "[" * 900 + "]" * 900 + "}}"})
    with pytest.raises(GTIError, match="B.item.json, column 'title': row 1 holds lists nested"):
        load_dataset(tmp_path / "json")
    atomic = lay(tmp_path / "atomic", parts | {"B.item": 'item_id:token\ttitle:token\na\t"A\nb\tB"\nc\tC\n'})
    assert load_dataset(atomic).items.title.tolist() == ['"A', 'B"', "C"]
    with pytest.raises(GTIError, match="B.item: line 2 .*quote"):
        load_dataset(lay(tmp_path / "odd", parts | {"B.item": 'item_id:token\ttitle:token\na\t"A\nb\tB\n'}), quoting="csv")
    bomb = lay(tmp_path / "bomb", parts)
    (bomb / "meta_B.jsonl.gz").write_bytes(gzip.compress((b" " * 2**20 + b"\n") * 70))
    with pytest.raises(GTIError, match="meta_B.jsonl.gz: unpacks to more than 200 times"):
        load_dataset(bomb)


def test_a_printed_list_is_cleaned_like_any_text():
    titles = ['["Sun \\ud83d", "b\\u0000c"]', "['Red' 'Blue']", "&#xD83D; x", '["\\ud83d\\ude00"]']
    items = pd.DataFrame({"item_id": list("abcd"), "title": titles, "description": "", "categories": ""})
    report: dict = {}
    assert clean_items(items, report).title.tolist() == ["Sun \ufffd, b c", "['Red' 'Blue']", "\ufffd x", "😀"]
    assert report["items kept: text with a broken character, shown as \ufffd"] == 2


@pytest.mark.parametrize("text", ["['a' 'b']", "['a'\n \"b\"]", "{'k': 'a' 'b'}"])
def test_texts_without_a_comma_are_not_one_text(text):
    with pytest.raises(ValueError):
        python_literal(text)
    assert python_literal("""['a', "b' 'c", '']""") == ["a", "b' 'c", ""]


def test_half_an_emoji_in_questions_made_by_hand():
    with pytest.raises(GTIError, match=r"here: user id of a question: got .*half a character"):
        check_questions(Questions(["test"], [HALF], [[0]], [[1]]), 2, "here")


# MovieLens-100K, Amazon 2023


FILM = "1|{}|1-Jan-95||url|" + "|".join(["0"] * 18 + ["1"]) + "\n"


def test_movielens_100k_cells(tmp_path):
    files = {"u.item": FILM.format('"Red\rBoat" (1995)'), "u.data": "1\t1\t5\t9\r\n"}
    items, events, _ = read_source(lay(tmp_path, files))
    assert items.title.tolist() == ['"Red Boat"'] and events.values.tolist() == [["1", "1", 9, 5.0]]
    with pytest.raises(GTIError, match="u.data: line 2 does not have 4 cells separated by"):
        read_source(lay(tmp_path, {"u.data": "1\t1\t5\t9\n1\t1\t5\n"}))
    with pytest.raises(GTIError, match="u.item: line 1 does not have 24 cells"):
        read_source(lay(tmp_path, {"u.item": FILM.format("A|B (1995)")}))
    with pytest.raises(GTIError, match="quoting: a folder of MovieLens 100K has known columns"):
        read_source(tmp_path, quoting="csv")


REVIEW = {"user_id": "u", "parent_asin": "a", "timestamp": 1, "rating": 5.0}


def test_amazon_2023_cells(tmp_path):
    meta = json.dumps({"parent_asin": "a", "title": f"Soap {HALF}"})
    items, events, _ = read_source(lay(tmp_path, {"meta_B.jsonl": meta, "B.jsonl": [REVIEW, REVIEW | {"rating": None}]}))
    assert items.title.tolist() == ["Soap \ufffd"] and events.rating.isna().tolist() == [False, True]
    with pytest.raises(GTIError, match="B.jsonl: line 1 has no 'user_id'"):
        read_source(lay(tmp_path, {"B.jsonl": [REVIEW | {"user_id": ""}]}))
    with pytest.raises(GTIError, match="B.jsonl, column 'user_id': row 1 .*half a character"):
        read_source(lay(tmp_path, {"B.jsonl": json.dumps(REVIEW | {"user_id": HALF})}))
    deep = '{"parent_asin": "a", "title": ' + "[" * 900 + "]" * 900 + "}"
    with pytest.raises(GTIError, match="meta_B.jsonl: line 1 holds lists nested more than 20 deep"):
        read_source(lay(tmp_path, {"meta_B.jsonl": deep, "B.jsonl": [REVIEW]}))
    (tmp_path / "B.jsonl").unlink()
    with pytest.raises(GTIError, match="B.csv: line 2 has 3 cells, the header has 4"):
        read_source(lay(tmp_path, {"meta_B.jsonl": meta, "B.csv": "user_id,parent_asin,rating,timestamp\nu,a,5\n"}))


# BEIR


HEAD = "query-id\tcorpus-id\tscore\n"
BEIR = {
    "corpus.jsonl": [{"_id": "d", "title": "T", "text": "x"}, {"_id": "e", "title": "U", "text": "y"}],
    "queries.jsonl": [{"_id": "q", "text": "red"}],
    "qrels/test.tsv": HEAD + "q\td\t1\n",
}


@pytest.mark.parametrize(
    "files, message",
    [
        ({"qrels/test.tsv": HEAD + "q\td\n"}, "test.tsv: line 2 has 2 cells, the header has 3"),
        ({"qrels/test.tsv": HEAD + 'q\t"d\t1\nq\te\t"1\n'}, "test.tsv: line 2 opens a quote .*quoting='none'"),
        ({"qrels/test.tsv": HEAD + "q\td\r\t1\n"}, "test.tsv: line 2 has a carriage return"),
        ({"qrels/test.tsv": HEAD + "q\td\thigh\n"}, r"test.tsv, column 'score': row 1 \(line 2\) is 'high', expected a number"),
        ({"qrels/test.tsv": HEAD.replace("score", "query-id") + "q\td\t1\n"}, "test.tsv: 2 columns are named 'query-id'"),
        ({"corpus.jsonl": '{"_id": "d", "_id": "e", "text": "x"}\n'}, "corpus.jsonl: line 1 is not valid JSON: the key '_id' occurs twice"),
        (
            {"corpus.jsonl": '{"_id": "d", "text": ' + "[" * 900 + "]" * 900 + "}\n"},
            r"corpus.jsonl, column 'text': row 1 \(line 1\) holds lists",
        ),
        ({"queries.jsonl": json.dumps({"_id": HALF, "text": "red"})}, r"queries.jsonl, column '_id': row 1 \(line 1\) .*half a character"),
    ],
)
def test_beir_cells_that_cannot_be_read_are_refused_at_their_line(tmp_path, files, message):
    with pytest.raises(GTIError, match=message):
        load_queries(lay(tmp_path, BEIR | files))


def test_beir_texts_and_quotes(tmp_path):
    corpus = "\n".join(json.dumps(row) for row in [{"_id": '"d', "title": f"T {HALF}", "text": "x\ry"}, {"_id": "e", "text": "y"}])
    queries = json.dumps({"_id": "q", "text": f"red {HALF}"})
    lay(tmp_path, {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/test.tsv": HEAD + 'q\t"d\t1\n'})
    with pytest.raises(GTIError, match="quoting='none'"):
        load_queries(tmp_path)
    for data in (load_queries(tmp_path, quoting="none"), load_catalogue(tmp_path, Loading(quoting="none"))):
        assert data.text(0) == "T \ufffd. x y" and data.queries["query"].tolist() == ["red \ufffd"]
        assert data.report["items kept: text with a broken character, shown as \ufffd"] == 1


# places


@pytest.mark.parametrize("place", ["x" * 300, "~nobody_here/x", "a\0b", HALF, ""])
def test_places_that_no_file_system_has(place):
    for look in (load_catalogue, published_source, is_query_folder):
        try:
            assert not look(place)
        except GTIError:
            pass


def test_a_wrong_quoting_is_refused_before_anything_is_read():
    with pytest.raises(GTIError, match="quoting: got 'all', allowed: None, 'csv', 'none'"):
        Loading(quoting="all")
