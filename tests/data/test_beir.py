"beir: published parts of queries, and what is refused."

import pytest
from data.folders import lay

from gti_nb.core import GTIError
from gti_nb.data.queries import QueryDataset, load_queries
from gti_nb.data.toy import toy_queries
from gti_nb.tokenize import load_catalogue

HEAD = "query-id\tcorpus-id\tscore\n"
SMALL = {
    "corpus.jsonl": [{"_id": f"d{k}", "title": f"Title {k}", "text": f"Text {k}.", "metadata": {"url": "x"}} for k in range(4)],
    "queries.jsonl": [{"_id": f"q{k}", "text": f"question {k}", "metadata": {}} for k in range(4)],
    "qrels/train.tsv": HEAD + "q0\td0\t2\nq0\td1\t1\n",
    "qrels/test.tsv": HEAD + "q2\td2\t1\nq2\td3\t0\n",
}


def test_the_parts_are_those_that_were_published(tmp_path):
    data = load_queries(lay(tmp_path, SMALL | {"qrels/dev.tsv": HEAD + "q1\td1\t1\n", "README.md": "x"}))
    assert data.queries.values.tolist() == [["q0", "question 0", "train"], ["q1", "question 1", "valid"], ["q2", "question 2", "test"]]
    assert [(r.tolist(), g.tolist()) for r, g in zip(data.relevant, data.grades, strict=True)] == [([0, 1], [2, 1]), ([1], [1]), ([2], [1])]
    assert data.text(0) == "Title 0. Text 0." and data.policies == {} and data.name == tmp_path.name
    assert data.report["queries dropped: no relevant item"] == 1
    assert QueryDataset.load(data.save(tmp_path / "saved")).content_hash == data.content_hash
    assert load_catalogue(tmp_path).content_hash == data.content_hash


def test_the_toy_queries_written_as_beir_are_the_toy_queries(tmp_path):
    own = load_queries("toy")
    items, queries, judged = toy_queries()
    corpus = items.rename(columns={"item_id": "_id", "description": "text"}).to_dict("records")
    lay(tmp_path, {"corpus.jsonl": corpus, "queries.jsonl": queries.set_axis(["_id", "text"], axis=1).to_dict("records")})
    part_of = dict(zip(own.queries.query_id, own.queries.split, strict=True))
    for part in ("train", "valid", "test"):
        rows = judged[judged.query_id.map(part_of) == part].set_axis(["query-id", "corpus-id", "score"], axis=1)
        lay(tmp_path, {f"qrels/{part}.tsv": rows.to_csv(sep="\t", index=False)})
    assert load_queries(tmp_path).content_hash == own.content_hash


def test_a_benchmark_of_test_queries_only(tmp_path):
    files = {name: content for name, content in SMALL.items() if name != "qrels/train.tsv"}
    with pytest.warns(UserWarning, match="cleaning leaves 4 of 4 items and 1 of 4 queries"):
        data = load_queries(lay(tmp_path, files))
    assert data.queries.split.tolist() == ["test"] and data.n_items == 4


def test_texts_without_titles_and_columns_by_name(tmp_path):
    corpus = [{"_id": f"d{k}", "text": f"<p>Text {k} &amp; more</p>", "name": f"Name {k}"} for k in range(4)]
    lay(tmp_path, SMALL | {"corpus.jsonl": corpus})
    assert load_queries(tmp_path).texts()[0] == "Text 0 & more"
    assert load_queries(tmp_path, columns={"title": "name"}).items.title[0] == "Name 0"
    assert load_queries(tmp_path, columns={"title": "text", "description": None}).items.description[0] == ""
    with pytest.raises(GTIError, match="columns: name: got 'query'"):
        load_queries(tmp_path, columns={"query": "text"})


@pytest.mark.parametrize(
    "files, message",
    [
        ({"qrels/dev.tsv": HEAD + "q2\td1\t1\n"}, "query 'q2' is in valid and test; a query belongs to one part"),
        ({"qrels/all.tsv": HEAD + "q2\td1\t1\n"}, "all.tsv: is named after no part; allowed: train, valid or dev, test"),
        ({"qrels/test.tsv": HEAD + "q2\td2\tmuch\n"}, r"test.tsv, column 'score': row 1 \(line 2\) is 'much', expected a number"),
        ({"qrels/test.tsv": "q2\td2\t1\n"}, "test.tsv: no column 'query-id' or 'query_id'"),
        ({"corpus.jsonl": [{"title": "x"}]}, "corpus.jsonl: no column '_id' or 'item_id'"),
        ({"queries.jsonl": [{"_id": "q", "text": {"en": "x"}}]}, r"queries.jsonl, column 'text': row 1 \(line 1\) holds a dict"),
        ({"queries.jsonl": b'{"_id": "q0", "text": \xff}\n'}, "queries.jsonl: line 1 is not UTF-8"),
        ({"queries.jsonl": [{"_id": "other", "text": "x"}]}, "no query is left after cleaning"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path, files, message):
    with pytest.raises(GTIError, match=message):
        load_queries(lay(tmp_path, SMALL | files))


def test_a_folder_of_judgements_without_any(tmp_path):
    with pytest.raises(GTIError, match="qrels: no judgements in it, expected files such as train.tsv"):
        load_queries(lay(tmp_path, {"corpus.jsonl": "x", "queries.jsonl": "x", "qrels/readme.txt": "x"}))
