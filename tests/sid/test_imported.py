"Index files of other projects, written and read again, and random semantic IDs."

import json

import numpy as np
import pytest
import torch

from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.imported import export_sids, import_sids, random_sids


@pytest.mark.parametrize("levels, codes", [(1, 200), (3, 64), (4, 256), (26, 2)])
def test_there_and_back(tmp_path, levels, codes):
    sids, ids = random_sids(300, levels, codes), [f"B00{i}" for i in range(300)]
    index = export_sids(sids, ids, tmp_path / "x.index.json")
    assert json.loads((tmp_path / "x.index.json").read_text()) == index
    again = import_sids(tmp_path / "x.index.json", ids, codes=codes)
    assert torch.equal(again.codes, sids.codes) and again.level_sizes == sids.level_sizes and again.token_names == sids.token_names
    assert export_sids(again, ids) == index
    order = np.random.default_rng(0).permutation(300)
    assert torch.equal(import_sids(index, [ids[i] for i in order]).codes, sids.codes[order])


def test_a_file_as_lc_rec_writes_it(tmp_path):
    dataset = load_dataset("toy")
    index = {i: [f"<a_{n // 8}>", f"<b_{n % 8}>", f"<c_{255 - n}>", "<d_0>"] for n, i in enumerate(dataset.items.item_id)}
    (tmp_path / "Toy.index.json").write_text(json.dumps(dict(reversed(index.items()))))
    sids = import_sids(tmp_path / "Toy.index.json", dataset)
    assert [sids.tokens(n) for n in range(dataset.n_items)] == list(index.values()) and sids.level_sizes == [5, 8, 256, 1]
    assert sids.policy == "none" and sids.summary()["quantizer"] == "imported"
    assert sids.resolve("extra_level").summary()["collision_excess"] == 0
    with pytest.raises(GTIError, match="needs a last level with vectors"):
        SemanticIds(torch.zeros_like(sids.codes)).resolve("hungarian", torch.zeros(dataset.n_items, 4))


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"1": ["<a_0>"], "2": ["<a_1>"], "1": ["<a_2>"]}', "'1' twice in one mapping"),
        ('[["<a_0>"], ["<a_1>"]]', "holds a list, expected an object"),
        ('{"1": ["<a_0>"], "2": ["<a_1>"', "not valid JSON at line 1"),
        ('{"1": ["<a_0>"]}', "has no semantic ID for 1 of 2 items: '2'"),
        ('{"1": ["<a_0>"], "2": ["<a_1>"], "3": ["<a_1>"]}', "1 of its items are not in the data set: '3'; pass subset=True"),
        ('{"1": ["<a_0>", "<b_0>"], "2": ["<a_1>"]}', "item '2' has 1 tokens"),
        ('{"1": ["<a_0>"], "2": ["<a_-1>"]}', "item '2' has the token '<a_-1>'"),
        ('{"1": ["<a_0>"], "2": ["<a_01>"]}', "item '2' has the token '<a_01>'"),
        ('{"1": ["<a_0>"], "2": ["<a_1> "]}', "item '2' has the token '<a_1> '"),
        ('{"1": ["<a_0>"], "2": ["<a_99999999999999999999>"]}', "item '2' has the token"),
        ('{"1": ["<b_0>"], "2": ["<b_1>"]}', "expected one like '<a_12>'"),
        ('{"1": ["<a_0>"], "2": [3]}', "item '2' has the token 3"),
        ('{"1": [], "2": []}', r"item '1' has \[\], expected a list of token names"),
        ('{"1": null, "2": ["<a_0>"]}', "item '1' has None, expected a list"),
        ('{"1": 7, "2": ["<a_0>"]}', "item '1' has 7, expected a list"),
        ('{"1": ' + json.dumps(["<a_0>"] * 27) + ', "2": ["<a_0>"]}', "27 tokens, allowed: at most 26"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, text, message):
    (tmp_path / "x.index.json").write_text(text)
    with pytest.raises(GTIError, match=message):
        import_sids(tmp_path / "x.index.json", ["1", "2"])


def test_other_refusals(tmp_path):
    index = {"1": ["<a_0>"], "2": ["<a_7>"], "3": ["<a_9>"]}
    with pytest.raises(GTIError, match="ids '1' occur more than once"):
        import_sids(index, ["1", "2", "1"])
    with pytest.raises(GTIError, match="got none"):
        import_sids(index, [])
    with pytest.raises(GTIError, match="got 5, but item '2' has <a_7>, allowed: 8 or more"):
        import_sids(index, ["1", "2"], codes=5, subset=True)
    with pytest.raises(GTIError, match="no such file"):
        import_sids(tmp_path / "none.json", ["1"])
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(GTIError, match="already exists"):
        export_sids(random_sids(1), ["1"], tmp_path / "mine.json")
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_many_missing_items_are_named_in_part():
    with pytest.raises(GTIError, match="for 9 of 9 items: 'i0', 'i1', 'i2', 'i3', 'i4' and 4 more"):
        import_sids({"x": ["<a_0>"]}, [f"i{n}" for n in range(9)], subset=True)


def test_random_semantic_ids_use_all_codes_alike():
    sids = random_sids(20_000, levels=3, codes=16, seed=5)
    assert torch.equal(sids.codes, random_sids(20_000, 3, 16, seed=5).codes) and not torch.equal(
        sids.codes, random_sids(20_000, 3, 16, seed=6).codes
    )
    report = sids.report()
    assert (report.perplexity > 15.9).all() and report.distinct.tolist()[:2] == [16, 256]
    assert torch.equal(sids.codes[:50], random_sids(50, 3, 16, seed=5).codes)


@pytest.mark.parametrize("wrong", [dict(n_items=0), dict(levels=0), dict(codes=-1), dict(codes=2.5), dict(levels=27)])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(GTIError, match=next(iter(wrong))):
        random_sids(**{"n_items": 5, **wrong})
