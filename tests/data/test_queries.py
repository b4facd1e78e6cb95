"queries: tables as users have them, the rules against a slow reference, parts without leaks, and saving and loading."

import json

import numpy as np
import pandas as pd
import pytest

from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import QueryDataset, load_queries
from gti_nb.data.toy import toy_queries

ITEMS, QUERIES, QRELS = toy_queries()


def write(frame: pd.DataFrame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text(frame.to_json(orient="records", lines=True), encoding="utf-8")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_every_format_gives_the_same_data(tmp_path, kind):
    for name, table in (("items", ITEMS), ("queries", QUERIES), ("qrels", QRELS)):
        write(table, tmp_path / f"{name}{kind}")
    wanted = load_queries("toy").content_hash
    assert load_queries(tmp_path).content_hash == wanted
    assert (
        load_queries(items=tmp_path / f"items{kind}", queries=tmp_path / f"queries{kind}", qrels=tmp_path / f"qrels{kind}").content_hash
        == wanted
    )


def test_a_list_column_in_every_spelling():
    lists = QRELS.groupby("query_id").item_id.agg(list)
    wanted = load_queries(items=ITEMS, queries=QUERIES, qrels=QRELS.assign(relevance=1)).content_hash
    for spelt in (
        lists,
        lists.map(np.array),
        lists.map(tuple),
        lists.map(json.dumps),
        lists.map(repr),
        lists.map(" | ".join),
        lists.map("|".join),
    ):
        assert load_queries(items=ITEMS, queries=QUERIES.assign(item_ids=QUERIES.query_id.map(spelt))).content_hash == wanted
    without = load_queries(items=ITEMS, queries=QUERIES, qrels=QRELS.drop(columns="relevance"))
    assert without.content_hash == wanted and {g for grades in without.grades for g in grades} == {1.0}


def test_metatools_layout(tmp_path):
    "A table of judgements, a list column and a column of parts, all three; the table counts."
    write(
        pd.DataFrame(
            {
                "item_id": ["FinanceTool", "NewsTool", "copilot"],
                "title": ["FinanceTool", "NewsTool", "copilot"],
                "description": ["Stocks", "News", "Cars"],
                "categories": "",
            }
        ),
        tmp_path / "items.parquet",
    )
    write(
        pd.DataFrame(
            {
                "query_id": ["s0", "m0", "s1"],
                "query": ["Price of Apple?", "News about Tesla and its stock", "A used car"],
                "kind": ["single", "multi", "single"],
                "split": ["train", "valid", "test"],
                "item_ids": ["FinanceTool", "FinanceTool | NewsTool", "copilot"],
            }
        ),
        tmp_path / "queries.parquet",
    )
    data = load_queries(tmp_path)
    assert (
        [r.tolist() for r in data.relevant] == [[0], [0, 1], [2]]
        and data.queries.split.tolist() == ["train", "valid", "test"]
        and data.policies == {}
        and data.name == tmp_path.name
    )
    write(
        pd.DataFrame(
            {
                "query_id": ["s0", "m0", "m0", "s1"],
                "item_id": ["FinanceTool", "FinanceTool", "NewsTool", "copilot"],
                "relevance": [1, 1, 2, 1],
            }
        ),
        tmp_path / "qrels.parquet",
    )
    assert load_queries(tmp_path).relevant[1].tolist() == [1, 0] and load_queries(tmp_path).check().found.tolist() == [0, 0]


def test_columns_by_other_names_and_float_ids():
    queries = pd.DataFrame({"qid": [1.0, 2.0], "text": ["one", "two"], "fold": ["Train", "dev"]})
    qrels = pd.DataFrame({"qid": ["1", "2"], "item_id": ["f00", "f01"], "label": ["2.5", "1"]})
    data = load_queries(
        items=ITEMS, queries=queries, qrels=qrels, columns={"query_id": "qid", "query": "text", "split": "fold", "relevance": "label"}
    )
    assert data.queries.values.tolist() == [["1", "one", "train"], ["2", "two", "valid"]] and [g.tolist() for g in data.grades] == [
        [2.5],
        [1.0],
    ]


def slow_cleaning(items: list[dict], queries: list[dict], qrels: list[dict]) -> tuple[list, dict]:
    "The rules as stated: kept item ids, and query id -> [(item, grade), ...], best first, then in the order of the items."
    catalogue = []
    for row in items:
        if row["item_id"] not in [c["item_id"] for c in catalogue]:
            catalogue.append(row)
    ids = [c["item_id"] for c in catalogue if c["title"] or c["description"]]
    asked = {}
    for row in queries:
        asked.setdefault(row["query_id"], row["query"])
    best = {}
    for row in qrels:
        key = row["query_id"], row["item_id"]
        if asked.get(key[0]) and key[1] in ids and row["relevance"] > 0:
            best[key] = max(best.get(key, 0), row["relevance"])
    found = {q: sorted(((i, g) for (p, i), g in best.items() if p == q), key=lambda e: (-e[1], ids.index(e[0]))) for q in asked}
    return ids, {q: f for q, f in found.items() if f}


@pytest.mark.parametrize("seed", range(12))
def test_cleaning_equals_its_rules_one_row_at_a_time(seed):
    rng = np.random.default_rng(seed)
    items = pd.DataFrame(
        {
            "item_id": [f"i{i}" for i in rng.integers(12, size=15)],
            "title": rng.choice(["", "A", "B"], 15),
            "description": rng.choice(["", "c"], 15),
        }
    )
    queries = pd.DataFrame(
        {"query_id": [f"q{q}" for q in rng.integers(14, size=18)], "query": rng.choice(["", "red", "Red ", "blue", "green", "grey"], 18)}
    )
    qrels = pd.DataFrame(
        {
            "query_id": [f"q{q}" for q in rng.integers(16, size=60)],
            "item_id": [f"i{i}" for i in rng.integers(14, size=60)],
            "relevance": rng.integers(-1, 4, 60),
        }
    )
    ids, wanted = slow_cleaning(items.to_dict("records"), queries.to_dict("records"), qrels.to_dict("records"))
    assert 2 < len(wanted) < queries.query_id.nunique() and len(ids) < items.item_id.nunique() + 1
    data = load_queries(items=items, queries=queries, qrels=qrels, valid_share=0.2, test_share=0.3)
    assert data.items.item_id.tolist() == ids
    ours = {}
    for query, rows, grades in zip(data.queries.query_id, data.relevant, data.grades, strict=True):
        ours[query] = list(zip(data.items.item_id[rows].tolist(), grades.tolist(), strict=True))
    assert ours == wanted and data.queries.query_id.tolist() == list(wanted)
    table = data.report_table()
    last = table.groupby("table").left.last().to_dict()
    assert last == {"items": data.n_items, "queries": data.n_queries, "judgements": sum(map(len, data.relevant))}
    data.check()
    shuffled = load_queries(items=items, queries=queries, qrels=qrels.sample(frac=1, random_state=seed), valid_share=0.2, test_share=0.3)
    assert shuffled.content_hash == data.content_hash


def test_parts_do_not_depend_on_the_order_of_the_rows_nor_much_on_other_queries():
    ours, theirs = load_queries("toy"), load_queries(items=ITEMS, queries=QUERIES[::-1], qrels=QRELS)

    def part(data):
        return dict(zip(data.queries.query_id, data.queries.split, strict=True))

    assert part(ours) == part(theirs) and sorted(map(len, map(ours.rows, ("train", "valid", "test")))) == [10, 10, 84]
    fewer = part(load_queries(items=ITEMS, queries=QUERIES[:100], qrels=QRELS))
    assert sum(fewer[q] != part(ours)[q] for q in fewer) <= 4
    assert part(load_queries("toy", seed=1)) != part(ours)


@pytest.mark.parametrize("part, earlier", [("valid", "train"), ("test", "train"), ("test", "valid")])
def test_the_same_words_in_two_parts_are_a_leak(part, earlier):
    queries = QUERIES.assign(split=["train", "valid", "test"] * 34 + ["train", "train"])
    load_queries(items=ITEMS, queries=queries, qrels=QRELS).check()
    a, b = queries.index[queries.split == earlier][0], queries.index[queries.split == part][1]
    queries.loc[b, "query"] = "  " + queries.loc[a, "query"].upper()
    with pytest.raises(GTIError, match=f"text of a {part} query in train.*: 1 of 34, first query {queries.query_id[b]!r}"):
        load_queries(items=ITEMS, queries=queries, qrels=QRELS).check()
    load_queries(items=ITEMS, queries=queries, qrels=QRELS, columns={"split": None}).check()


def test_pairs_are_the_judgements():
    data = load_queries("toy")
    pairs = pd.concat([data.pairs(p) for p in ("train", "valid", "test")])
    ours = set(zip(data.queries.query_id[pairs["query"]], data.items.item_id[pairs["item"]], pairs.relevance, strict=True))
    assert ours == set(QRELS.itertuples(index=False, name=None)) and len(pairs) == len(QRELS)
    assert (pairs.text.to_numpy() == data.queries["query"].to_numpy()[pairs["query"]]).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(queries=QUERIES.drop(columns="query")), "queries: no column 'query', it has: 'query_id'"),
        (dict(qrels=QRELS.drop(columns="item_id")), "qrels: no column 'item_id'"),
        (dict(qrels=None), "neither a table of judgements"),
        (dict(qrels=QRELS.assign(relevance=np.nan)), "qrels, column 'relevance': row 1 is nan, expected a number"),
        (dict(queries=QUERIES.assign(split="tset")), "queries, column 'split': row 1 is 'tset', expected train, valid or test"),
        (dict(queries=QUERIES[:0]), "queries: no rows"),
        (dict(queries=QUERIES.assign(query_id=None)), "queries, column 'query_id': row 1 has no id"),
        (dict(qrels=QRELS.assign(item_id="x")), "no query is left after cleaning"),
        (dict(test_share=0), "test_share: got 0, allowed: a number above 0"),
        (dict(columns={"qid": "a"}), "columns: name: got 'qid'"),
        (dict(queries=None), "queries is missing, pass both tables"),
        (dict(queries=QUERIES.assign(item_ids="[1, __import__('os')]"), qrels=None), "column 'item_ids': row 1 is "),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(change, message):
    with pytest.raises(GTIError) as e:
        load_queries(**(dict(items=ITEMS, queries=QUERIES, qrels=QRELS) | change))
    assert message in str(e.value)


def test_places_that_hold_no_queries(tmp_path):
    with pytest.raises(GTIError, match="no file items.csv.*it holds: nothing"):
        load_queries(tmp_path)
    write(ITEMS, tmp_path / "items.csv")
    write(QUERIES, tmp_path / "queries.csv")
    write(QUERIES, tmp_path / "queries.tsv")
    with pytest.raises(GTIError, match="several files queries"):
        load_queries(tmp_path)
    with pytest.raises(GTIError, match="a file, expected a folder"):
        load_queries(tmp_path / "items.csv")
    (tmp_path / "queries.tsv").unlink()
    lines = (tmp_path / "queries.csv").read_text().splitlines()
    lines[3] = ",no id"
    (tmp_path / "queries.csv").write_text("\n".join(lines))
    write(QRELS, tmp_path / "qrels.csv")
    with pytest.raises(GTIError, match=r"queries.csv, column 'query_id': row 3 \(line 4\) has no id"):
        load_queries(tmp_path)


def test_save_and_load(tmp_path):
    data = load_queries(items=ITEMS.assign(brand="Studio"), queries=QUERIES, qrels=QRELS, seed=3)
    data.save(tmp_path / "a")
    again = load_queries(tmp_path / "a")
    assert (
        again.items.equals(data.items)
        and again.queries.equals(data.queries)
        and (again.report, again.policies, again.name) == (data.report, data.policies, data.name)
    )
    assert all(np.array_equal(a, b) for a, b in zip(again.relevant + again.grades, data.relevant + data.grades, strict=True))
    before = (tmp_path / "a" / "qrels.parquet").stat().st_mtime_ns
    data.save(tmp_path / "a")
    assert (tmp_path / "a" / "qrels.parquet").stat().st_mtime_ns == before
    with pytest.raises(GTIError, match="already exists"):
        load_queries("toy").save(tmp_path / "a")
    grades = pd.read_parquet(tmp_path / "a" / "qrels.parquet")
    grades.loc[0, "relevance"] += 1
    grades.to_parquet(tmp_path / "a" / "qrels.parquet")
    with pytest.raises(GTIError, match="damaged, qrels.parquet has other bytes than were written"):
        load_queries(tmp_path / "a")
    (tmp_path / "a" / "qrels.parquet").write_bytes(b"PAR1")
    with pytest.raises(GTIError, match="damaged"):
        load_queries(tmp_path / "a")


def test_each_kind_is_read_by_its_own_loader(tmp_path):
    load_queries("toy").save(tmp_path / "q")
    load_dataset("toy").save(tmp_path / "s")
    with pytest.raises(GTIError, match="holds queries, expected sequences; read it with load_queries"):
        load_dataset(tmp_path / "q")
    with pytest.raises(GTIError, match="holds sequences, expected queries; read it with load_dataset"):
        load_queries(tmp_path / "s")


def test_a_catalogue_is_a_catalogue():
    queries, sequences = load_queries("toy"), load_dataset("toy")
    assert queries.texts() == sequences.texts() and queries.text(7) == sequences.text(7) and queries.n_items == 40


@pytest.mark.parametrize(
    "relevant, grades, message",
    [
        ([[0], [40]], [[1], [1]], "has items \\[40\\]"),
        ([[0], []], [[1], []], "at least one item"),
        ([[0], [1, 1]], [[1], [1, 1]], "none twice"),
        ([[0], [1, 2]], [[1], [1, 2]], "highest first"),
        ([[0], [1]], [[1], [0]], "grades above 0"),
        ([[0]], [[1]], "2 queries, 1 lists of items"),
    ],
)
def test_what_does_not_fit_together_is_no_query_data_set(relevant, grades, message):
    queries = QUERIES[:2].assign(split="train")
    with pytest.raises(GTIError, match=message):
        QueryDataset(ITEMS, queries, relevant, grades)


def test_a_data_set_by_hand_needs_ids_of_its_own_and_known_parts():
    queries = QUERIES[:2].assign(split="train")
    with pytest.raises(GTIError, match="query id 'q000' occurs more than once"):
        QueryDataset(ITEMS, queries.assign(query_id="q000"), [[0], [1]], [[1], [1]])
    with pytest.raises(GTIError, match="split: got 'holdout'"):
        QueryDataset(ITEMS, queries.assign(split="holdout"), [[0], [1]], [[1], [1]])
