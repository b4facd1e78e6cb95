"published splits: every form of the files gives the same questions, and a paper's own test is kept as it is."

import copy
import json
import random

import numpy as np
import pandas as pd
import pytest
from data.folders import lay
from hypothesis import given, settings
from hypothesis import strategies as st

from gti_nb.core import GTIError
from gti_nb.data.dataset import RecDataset, load_dataset
from gti_nb.data.published_files import id_list_column
from gti_nb.data.questions import join_rows
from gti_nb.data.sources import read_source
from gti_nb.data.toy import toy_tables

ITEMS, EVENTS = toy_tables()
SEQUENCES = {user: own.item_id.tolist() for user, own in EVENTS.groupby("user_id", sort=False)}
PARTS = {"train": slice(None, -2), "valid": slice(-2, -1), "test": slice(-1, None)}


def sliding(rows: list[str], first: int, longest: int = 50) -> list[tuple[list[str], str]]:
    "History, at most `longest`, and the next item, from the item at `first` on."
    return [(rows[max(k - longest, 0) : k], rows[k]) for k in range(max(first, 1), len(rows))]


def with_history(part: str) -> list[tuple[str, list[str], str]]:
    "User, history and target of every row of a part, as MiniOneRec and RecBole's benchmark files have them."
    out = []
    for user, items in SEQUENCES.items():
        cut = {"train": items[:-2], "valid": items[:-1], "test": items}[part]
        rows = sliding(cut, 1 if part == "train" else len(cut) - 1)
        out += [(user, history, target) for history, target in rows]
    return out


def events_csv(part: str) -> str:
    rows = EVENTS.groupby("user_id", sort=False).nth(PARTS[part]).sample(frac=1, random_state=0)
    return rows.rename(columns={"item_id": "parent_asin"}).to_csv(index=False)


def table(part: str, printed=str) -> pd.DataFrame:
    rows = with_history(part)
    return pd.DataFrame({"user_id": [u for u, _, _ in rows], "history": [printed(h) for _, h, _ in rows], "item_id": [t for *_, t in rows]})


def minionerec(part: str) -> str:
    titles = ITEMS.set_index("item_id").title
    frame = table(part).rename(columns={"history": "history_item_id"})
    frame.insert(1, "history_item_title", [str(titles[h].tolist()) for _, h, _ in with_history(part)])
    return frame.assign(item_title=titles[frame.item_id].to_numpy(), history_item_sid="['<a_1>']", item_sid="<a_2>").to_csv(index=False)


def atomic(part: str) -> str:
    lines = [f"{u}\t{' '.join(h)}\t{t}\n" for u, h, t in with_history(part)]
    return "user_id:token\titem_id_list:token_seq\titem_id:token\n" + "".join(lines)


def lists(part: str) -> dict[str, list[str]]:
    return {user: items[PARTS[part]] for user, items in SEQUENCES.items()}


ITEM_CSV = ITEMS.to_csv(index=False)
ITEM_JSON = {i: {"title": t, "description": d, "categories": c} for i, t, d, c in ITEMS.values.tolist()}
FORMS = {
    "lines": lambda p: {f"{p}.txt": "".join(f"{u} {' '.join(i)}\n" for u, i in lists(p).items())},
    "lists by user": lambda p: {f"{p}.json": lists(p)},
    "events with times": lambda p: {f"Toy.{p}.csv": events_csv(p)},
    "printed by Python": lambda p: {f"{p}.csv": table(p).to_csv(index=False)},
    "printed as JSON": lambda p: {f"toy_{p}.tsv": table(p, json.dumps).to_csv(index=False, sep="\t")},
    "between spaces": lambda p: {f"{p}.csv": table(p, " ".join).to_csv(index=False)},
    "between bars": lambda p: {f"{p}.csv": table(p, "|".join).to_csv(index=False)},
    "jsonl": lambda p: {f"{p}.jsonl": table(p, list).to_dict("records")},
    "atomic files": lambda p: {f"Toy.{p}.inter": atomic(p)},
    "MiniOneRec": lambda p: {f"{p}/Toy_5_2016-10-2018-11.csv": minionerec(p)},
}
NAMES = {"lines": {"valid": "dev"}, "lists by user": {"train": "training", "valid": "validation", "test": "testing"}}


def published(folder, form: str, items: dict | None = None):
    "A folder with the toy data's leave-one-out split in one of the forms."
    for part in PARTS:
        files = FORMS[form](part)
        lay(folder, {name.replace(part, NAMES.get(form, {}).get(part, part)): content for name, content in files.items()})
    return lay(folder, items or {"items.csv": ITEM_CSV})


def asked(data, which: str) -> list:
    split = data.split()
    return sorted((split.user_ids[u], split.past(u, which).tolist(), split.answers(u, which).tolist()) for u in split.users(which))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_split_that_was_written(tmp_path, form):
    where = {"index/Toy.item.json": ITEM_JSON, "index/Toy.index.json": {}, "info/Toy_5.txt": "x\ty\t0\n"} if form == "MiniOneRec" else None
    folder = published(tmp_path / "paper", form, where)
    data, own = load_dataset(folder), load_dataset("toy", k_core=0)
    assert data.items.equals(own.items) or data.items.drop(columns="brand").equals(own.items)
    left_out = own.leave_one_out()
    train = dict(zip(data.user_ids, [s.tolist() for s in data.sequences], strict=True))
    assert train == {user: items.tolist() for user, items in zip(own.user_ids, left_out.train, strict=True)}
    assert asked(data, "valid") == asked(own, "valid") and asked(data, "test") == asked(own, "test")
    assert not data.split(max_history=5).check().query("not allowed").found.any() and data.policies["repeats"] == "first"
    saved = load_dataset(data.save(tmp_path / "saved"))
    assert saved.content_hash == data.content_hash and asked(saved, "test") == asked(data, "test")


@given(st.lists(st.integers(0, 30), min_size=2, max_size=25, unique=True), st.integers(1, 12), st.randoms())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_overlapping_rows_are_joined_to_the_sequence_they_came_from(sequence, longest, chance: random.Random):
    rows = [(history, [target]) for history, target in sliding(sequence, 1, longest)]
    assert join_rows(rows) == sequence
    whole = [(history, [target]) for history, target in sliding(sequence, 1)]
    chance.shuffle(whole)
    assert join_rows(whole) == sequence


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="|[]"), min_size=1, max_size=6), max_size=5))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_printed_list_is_the_list(ids):
    cells = [ids, str(ids), json.dumps(ids), json.dumps(ids, ensure_ascii=False), " ".join(ids)]
    assert [list(found) for found in id_list_column(pd.Series(cells, dtype=object), " ")] == [ids] * 5


@pytest.mark.parametrize("cell", ["[open('x')]", "[1", "[" * 5000, "[().__class__]", '["a", 1e999999, NaN('])
def test_a_history_is_read_and_never_run(tmp_path, cell):
    frame = pd.DataFrame({"user_id": ["u", "u"], "history": ["['f00']", cell], "item_id": ["f01", "f02"]})
    files = {f"{part}.csv": frame.to_csv(index=False) for part in ("train", "test")}
    with pytest.raises(GTIError, match=r"train.csv, column 'history': row 2 \(line 3\) is ['\"]"):
        load_dataset(lay(tmp_path, files | {"items.csv": ITEM_CSV}))


def small(tmp_path, train: str, test: str, **more):
    lay(
        tmp_path,
        {"items.csv": "item_id,title\n" + "".join(f"{i},Title {i}\n" for i in "abcdef"), "train.txt": train, "test.txt": test, **more},
    )
    return tmp_path


def test_several_targets_of_a_user_are_one_question(tmp_path):
    data = load_dataset(small(tmp_path, "u a b\nw b c\n", "u c d\nw d\nu e\n"))
    assert asked(data, "test") == [("u", [0, 1], [2, 3, 4]), ("w", [1, 2], [3])]
    with pytest.raises(GTIError, match="no user has an item|allowed|split"):
        data.leave_one_out()
    assert len(data.split().users("valid")) == 0


def test_several_questions_of_a_user_are_several_questions(tmp_path):
    rows = "user_id,history,item_id\nu,a b,c\nu,a b c,d\nu,a b c,d\n"
    lay(small(tmp_path, "u a b\n", "x"), {"test.csv": rows})
    (tmp_path / "test.txt").unlink()
    assert asked(load_dataset(tmp_path), "test") == [("u", [0, 1], [2]), ("u", [0, 1, 2], [3]), ("u", [0, 1, 2], [3])]


def test_unknown_items_duplicates_and_users_without_a_past_are_counted(tmp_path):
    "Fault classes 15 and 22: the policy is stated and counted, and a target that is not in the catalogue is a miss."
    data = load_dataset(small(tmp_path, "u a zz b\nw c d\nnobody zz\n", "u c c zz\nw zz\nnew a\nnobody a\nw\n"))
    assert asked(data, "test") == [("u", [0, 1], [2, -1]), ("w", [2, 3], [-1])] and data.user_ids == ["u", "w"]
    wanted = {
        "events dropped: item not in the catalogue": 2,
        "users dropped: no event left": 1,
        "test in the table": 4,
        "test dropped: no known item before the target": 2,
        "test kept: a target is not in the catalogue, a miss": 2,
        "test": 2,
    }
    assert {name: data.report[name] for name in wanted} == wanted
    table = data.report_table()
    assert table.groupby("table").left.last()[["users", "test"]].tolist() == [2, 2]
    assert data.split().cold().tolist() == [False, False, False, True]  # one of u's targets was learned
    assert "kept: a target is not" not in str(load_dataset("toy").report)


def test_a_target_outside_the_catalogue_is_a_miss_in_every_metric(tmp_path):
    from gti_nb.evaluate.ranking import evaluate_answers

    split = load_dataset(small(tmp_path, "u a b\nw c d\n", "u zz\nw e\n")).split()
    answers = [split.answers(u) for u in split.users()]
    assert evaluate_answers(np.array([[-1, 4], [4, 0]]), answers, ks=(2,))["recall@2"].tolist() == [0, 1]
    answers = [np.array([-1, 4]), np.array([4])]
    assert evaluate_answers(np.array([[-1, 4], [4, 0]]), answers, ks=(2,))["recall@2"].tolist() == [0.5, 1]


@pytest.mark.parametrize(
    "choice", [dict(k_core=3), dict(k_core=10), dict(min_rating=3.0), dict(ties="hash"), dict(max_events=9), dict(min_rating=0.0)]
)
def test_no_rule_changes_a_published_split(tmp_path, choice):
    with pytest.raises(GTIError, match=f"{next(iter(choice))}=.*: a published split is kept as it is"):
        load_dataset(small(tmp_path, "u a b\n", "u c\n"), **choice)
    assert load_dataset(tmp_path, k_core=0).content_hash == load_dataset(tmp_path).content_hash


def test_items_that_people_take_again_are_offered_again(tmp_path):
    assert not load_dataset(small(tmp_path / "a", "u a b\n", "u c\n")).split().repeats
    assert load_dataset(tmp_path / "a", repeats="all").split().repeats
    for name, train, test in (("b", "u a b a\n", "u c\n"), ("c", "u a b\n", "u a\n")):
        data = load_dataset(small(tmp_path / name, train, test))
        assert data.split().repeats and data.policies["repeats"] == "all"
        assert data.split().check().loc["target in history (test)", "found"] == (name == "c")


def test_a_published_split_that_leaks_is_refused_unless_asked_for(tmp_path):
    rows = "user_id,history,item_id\nu,a b,d\nw,c,e\n"  # what the test asks of u was learned from u
    lay(small(tmp_path, "u a b d\nw c\n", "x"), {"test.csv": rows})
    (tmp_path / "test.txt").unlink()
    with pytest.raises(GTIError, match=r"training items \(test\): 1 of 2, first user 'u'.*pass repeats='all'"):
        load_dataset(tmp_path).split().check()
    assert load_dataset(tmp_path, repeats="all").split().check().loc["target in the user's training items (test)", "found"] == 1


@pytest.mark.parametrize("which", ["valid", "test"])
def test_every_check_of_a_published_split_can_fail(tmp_path, which):
    split = copy.deepcopy(load_dataset(published(tmp_path, "lines")).split())
    row = int(np.flatnonzero(split.questions.parts == which)[3])
    split.questions.targets[row] = split.questions.histories[row][:1]
    with pytest.raises(GTIError, match=f"target in history .({'validation' if which == 'valid' else 'test'}).: 1 of 30, first user 'u03'"):
        split.check()


def test_time_and_order_of_a_published_split(tmp_path):
    data = load_dataset(published(tmp_path, "events with times"))
    with pytest.raises(GTIError, match="has a published split, and its test is not to be made anew; use split()"):
        data.global_time()
    assert data.split(max_history=2).history(40, "valid").tolist() == data.split().past(40, "valid")[-2:].tolist()


def test_files_that_cannot_be_a_split(tmp_path):
    one = {"items.csv": "item_id,title\na,A\n"}
    for name, files, message in [
        ("a", {"train.csv": "x", "test.csv": "x"}, "files of training and test, but no item table beside them; expected one items.csv"),
        ("b", one | {"train.txt": "u a\n"}, "no data set recognised; it holds: items.csv, train.txt"),
        (
            "c",
            one | {"train.csv": "user_id,thing\nu,a\n", "test.csv": "x"},
            "no column 'item_id', it has: 'user_id'",
        ),
        ("d", one | {"train.json": '{"u": ["a"], "u": ["b"]}', "test.txt": "u a\n"}, "train.json: .*the key 'u' occurs twice"),
        ("e", one | {"train.json": "[" * 100_000, "test.txt": "u a\n"}, "train.json: "),
        (
            "f",
            one | {"train.txt": "u a\n", "train.csv": "x", "test.txt": "u a\n"},
            "several files for train",
        ),
        (
            "g",
            one | {"train.txt": "u zz\n", "test.txt": "u a\n"},
            "no training item or no test question is left",
        ),
        ("h", one | {"train.txt": b"u \xff\n", "test.txt": "u a\n"}, "train.txt: line 1 is not UTF-8"),
        (
            "i",
            one | {"train.csv": "user_id,item_id\nu,\n", "test.txt": "u a\n"},
            "no training item|has no id",
        ),
        ("j", {"items.csv": "x", "items.tsv": "x", "train.txt": "u a\n", "test.txt": "u a\n"}, r"2 item tables \(items.csv, items.tsv\)"),
    ]:
        with pytest.raises(GTIError, match=message):
            load_dataset(lay(tmp_path / name, files))
    with pytest.raises(GTIError, match="columns: name: got 'historie', allowed: .*'history'"):
        load_dataset(small(tmp_path / "k", "u a\n", "u b\n"), columns={"historie": "x"})
    with pytest.raises(GTIError, match="a published split; load_dataset reads it"):
        read_source(tmp_path / "k")


def test_several_splits_in_a_folder_are_chosen_by_name(tmp_path):
    both = {"index/Toys.item.json": ITEM_JSON, "index/Games.item.json": ITEM_JSON | {"x": {"title": "X"}}}
    for name in ("Toys", "Games"):
        for part in PARTS:
            lay(tmp_path, {f"{part}/{name}_5_2016.csv": minionerec(part)})
    lay(tmp_path, both)
    with pytest.raises(GTIError, match="2 published splits in it: Games_5_2016, Toys_5_2016; pass one, as in .*Games_5_2016"):
        load_dataset(tmp_path)
    assert (load_dataset(tmp_path / "Toys").n_items, load_dataset(tmp_path / "Games").n_items) == (40, 41)
    assert load_dataset(tmp_path / "Toys").name == "Toys"
    with pytest.raises(GTIError, match="no such folder"):
        load_dataset(tmp_path / "Books")


def test_all_interactions_beside_a_published_split_are_taken_with_a_warning(tmp_path):
    folder = published(tmp_path, "lines")
    lay(folder, {"interactions.csv": EVENTS.to_csv(index=False)})
    with pytest.warns(UserWarning, match=r"its published split \(train.txt, dev.txt, test.txt\) is not used|published split"):
        assert load_dataset(folder).questions is None


def test_columns_can_be_named(tmp_path):
    frame = pd.DataFrame({"who": ["u", "u"], "seen": ["a b", "a b c"], "then": ["c", "d"]})
    train = pd.DataFrame({"who": ["u", "u"], "then": ["a", "b"]})
    lay(tmp_path, {"items.csv": "sku,name\n" + "".join(f"{i},T{i}\n" for i in "abcd")})
    lay(tmp_path, {"train.csv": train.to_csv(index=False), "test.csv": frame.to_csv(index=False)})
    columns = {"user_id": "who", "history": "seen", "item_id": ["sku", "then"], "title": "name"}
    assert asked(load_dataset(tmp_path, columns=columns), "test") == [("u", [0, 1], [2]), ("u", [0, 1, 2], [3])]


def test_text_of_a_minionerec_folder_is_read_as_text(tmp_path, recwarn):
    "Lists and HTML become text, the catalogue stays whole with the default k_core, and nothing warns."
    spoilt = {
        i: {"title": f"<b>{m['title']}</b> &amp; more", "description": str(["It's <i>big</i>.", "Red"])} for i, m in ITEM_JSON.items()
    }
    data = load_dataset(published(tmp_path, "MiniOneRec", {"index/Toy.item.json": spoilt}))
    assert data.n_items == 40 and not [w for w in recwarn if "cleaning leaves" in str(w.message)]
    assert data.items.title[0] == f"{ITEMS.title[0]} & more" and data.items.description[0] == "It's big. Red"
    assert data.report["items kept: HTML or a printed list in their texts, read as text"] == 40


def test_amazon_2023_splits_with_their_products(tmp_path):
    header = "user_id,parent_asin,rating,timestamp,history\n"
    files = {
        "meta_Toys.jsonl": [{"parent_asin": f"B{k}", "title": f"Toy {k}"} for k in range(6)],
        "Toys.train.csv": header + "u,B1,5.0,2,B0\nu,B0,5.0,1,\n",
        "Toys.valid.csv": header + "u,B2,4.0,3,B0 B1\n",
        "Toys.test.csv": header + "u,B3,4.0,4,B0 B1 B2\nu,B4,4.0,5,B0 B1 B2 B3\n",
    }
    data = load_dataset(lay(tmp_path, files))
    assert data.items.item_id.tolist() == ["B0", "B1", "B2", "B3", "B4"] and [s.tolist() for s in data.sequences] == [[0, 1]]
    assert asked(data, "test") == [("u", [0, 1, 2], [3]), ("u", [0, 1, 2, 3], [4])]


def test_a_changed_question_changes_the_identity(tmp_path):
    data = load_dataset(published(tmp_path / "p", "lines"))
    other = copy.deepcopy(data)
    other.questions.targets[0] = other.questions.targets[1]
    without = RecDataset(data.items, data.sequences, data.user_ids, policies=data.policies)
    assert len({data.content_hash, other.content_hash, without.content_hash}) == 3
    saved = data.save(tmp_path / "s")
    (saved / "questions.parquet").unlink()
    with pytest.raises(GTIError, match="damaged, questions.parquet is missing"):
        load_dataset(saved)
