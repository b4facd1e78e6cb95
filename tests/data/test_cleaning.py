"cleaning: texts become readable, and a great loss is said at once."

import json
import warnings

import pandas as pd
import pytest
from data.folders import lay
from hypothesis import given, settings
from hypothesis import strategies as st

from gti_nb.data.cleaning import readable
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.data.toy import toy_tables

plain = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
any_text = st.text(max_size=60).map(lambda text: " ".join(text.split()))


@given(st.lists(plain, max_size=5))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_printed_list_reads_as_its_parts(parts):
    assert readable(str(parts)) == readable(json.dumps(parts)) == ", ".join(parts)
    assert readable(str([f"<b>{part}</b>" for part in parts])) == ", ".join(parts)


@given(any_text)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_is_read_without_an_error_and_plain_text_stays(text):
    assert isinstance(readable(text), str)
    if not set(text) & set("[<&"):
        assert readable(text) == text
    assert readable("[" * 3000 + text) == "[" * 3000 + text or "<" in text or "&" in text


@pytest.mark.parametrize(
    "text, read",
    [
        ("['It&#39;s <i>soft</i>.', 'Red']", "It's soft. Red"),
        ("[['Toys', 'Games'], ['Gifts']]", "Toys, Games, Gifts"),
        ('["a", null]', "a"),
        ("[]", ""),
        ("[REC] 2", "[REC] 2"),
        ("[1, 2]", "[1, 2]"),
        ("[open('x')]", "[open('x')]"),
        ("Pick <a_1> for 2 < 3 & 4", "Pick <a_1> for 2 < 3 & 4"),
        ("&lt;b&gt;x&lt;/b&gt;", "x"),
    ],
)
def test_texts_of_web_pages_and_programs(text, read):
    assert readable(text) == read


@pytest.mark.parametrize("form", ["csv", "lcrec", "recbole"])
def test_texts_of_every_layout_are_read_as_text(tmp_path, form):
    "Tags, entities and printed lists, in tables and in files of papers."
    items, events = toy_tables()
    spoilt = items.assign(title="<b>" + items.title + "</b> &amp; Co", description=[str([d, "Twice"]) for d in items.description])
    if form == "csv":
        lay(tmp_path, {"items.csv": spoilt.to_csv(index=False), "interactions.csv": events.to_csv(index=False)})
    elif form == "lcrec":
        texts = {i: {"title": t, "description": d} for i, t, d, _ in spoilt.values.tolist()}
        lay(tmp_path, {"x.item.json": texts, "x.inter.json": events.groupby("user_id").item_id.apply(list).to_dict()})
    else:
        names = {"item_id": "item_id:token", "title": "title:token_seq"}
        lay(tmp_path, {"x.item": spoilt.rename(columns=names).to_csv(sep="\t", index=False, quoting=3, escapechar="\\")})
        lay(tmp_path, {"x.inter": events.to_csv(sep="\t", index=False)})
    data = load_dataset(tmp_path)
    assert data.items.title[0] == f"{items.title[0]} & Co" and data.items.description[0] == f"{items.description[0]}, Twice"
    assert data.report["items kept: HTML or a printed list in their texts, read as text"] == 40
    clean = load_dataset(items=data.items, interactions=events)
    assert clean.items.equals(data.items) and "read as text" not in str(clean.report)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_warning_exactly_when_less_than_half_is_left(kept, lone, unknown):
    "Users of three items each, `lone` items that nobody takes, and `unknown` events of items that are not in the table."
    ids = [f"i{k}" for k in range(3 * kept)]
    items = pd.DataFrame({"item_id": ids + [f"x{k}" for k in range(3 * lone)], "title": "t"})
    rows = [(f"u{k // 3}", i, k) for k, i in enumerate(ids)] + [("u0", f"y{k}", k) for k in range(3 * unknown)]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_dataset(items=items, interactions=events, k_core=1)
    said = [str(w.message) for w in seen if "cleaning leaves" in str(w.message)]
    assert bool(said) == (lone > kept or unknown > kept) and len(said) <= 1
    if said:
        assert f"{3 * kept:,} of {3 * (kept + lone):,} items and {3 * kept:,} of {3 * (kept + unknown):,} events" in said[0]


def test_the_warning_names_the_rule_that_dropped_the_most():
    items, events = toy_tables()
    with pytest.warns(UserWarning, match=r"tables: cleaning leaves .* \(events dropped: rating below 4, or none: 200\); a lower k_core"):
        load_dataset(items=items, interactions=events.assign(rating=[5, 1, 1] * 100), min_rating=4, k_core=0)


def test_queries_warn_too():
    items = pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]})
    queries = pd.DataFrame({"query_id": list("123"), "query": ["x", "y", "z"], "item_ids": ["a", "zz", "zz"]})
    with pytest.warns(UserWarning, match="cleaning leaves 2 of 2 items and 1 of 3 queries and 1 of 3 judgements"):
        load_queries(items=items, queries=queries)
