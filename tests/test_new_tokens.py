"Any new tokens with descriptions, and files of new rows."
import json
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data import load_dataset
from gti_nb.initializers.base import draw_rows
from gti_nb.initializers.registry import initialize
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vocab import SidModel

TOOLS = {"<calculator>": "adds and multiplies numbers", "<calendar>": "knows the days", "[MAP]": ""}
PAIRS = [("adds and multiplies", "<calculator>"), ("turns 3 feet into metres", ["<calculator>", "<units>"]), ("the days", ("<calendar>",))]


def old_logits(model, ids=torch.tensor([[5, 9, 40, 7]])):
    with torch.no_grad(): return model(ids).logits


def test_pairs_of_text_and_tokens(tmp_path):
    model = SidModel.extend(*load_base("tiny-llama-untied"), PAIRS)
    assert model.token_names == ["<calculator>", "<units>", "<calendar>"] and model.sids is None
    assert model.pairs == [("adds and multiplies", [0]), ("turns 3 feet into metres", [0, 1]), ("the days", [2])]
    for rows, old in zip(draw_rows(model, "text_mean"), (model.old_rows, model.old_head_rows)):
        phi = [old[model.tokenizer.encode(text, add_special_tokens=False)].mean(0) for text, _ in PAIRS]
        for row, wanted in zip(rows, ((phi[0] + phi[1]) / 2, phi[1], phi[2])): assert torch.allclose(row, wanted, atol=1e-6)
    again = SidModel.load(model.save(tmp_path/"model"))
    assert again.pairs == model.pairs and again.token_names == model.token_names
    assert all(torch.equal(a, b) for a, b in zip(draw_rows(again, "ctfidf"), draw_rows(model, "ctfidf")))


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded"])
def test_descriptions_survive_saving(base, tmp_path):
    model = SidModel.extend(*load_base(base), TOOLS, init="text_mean")
    again = SidModel.load(model.save(tmp_path/"model"))
    assert again.descriptions == TOOLS and again.pairs == [(text, [i]) for i, text in enumerate(TOOLS.values())]
    assert all(torch.equal(a, b) for a, b in zip(again.new_parameters(), model.new_parameters()))


@pytest.mark.parametrize("words, message", [
    ({"<|im_end|>": "x"}, "already has 1 of the 1 new tokens, e.g. '<|im_end|>'"), ({"a": "x"}, "already has 1"), ({"": "x"}, "got the name ''"), ({" <a>": "x"}, "got the name ' <a>'"),
    ({"<a>\n": "x"}, "got the name '<a>"), ({"<\ud800>": "x"}, "got the name"), ({"\x00": "x"}, "got the name"), ({"tool": "x"}, "sets it apart from ordinary words"), ({"two words": "x"}, "sets it apart"),
    ({3: "x"}, "the tokens of pair 0 are \\[3\\]"), ({"<a>": None}, "description of '<a>' is None"), ({"<a>": float("nan")}, "is nan, expected text"), ({"<a>": b"x"}, "expected text"),
    ({}, "no new tokens"), ([], "no new tokens"), ("<a>", "got str"), (None, "got NoneType"), (["<a>"], "pair 0 is '<a>'"), ([("x", "<a>", 1)], "pair 0 is"), ([("x", [])], "tokens of pair 0 are \\[\\]"),
    ([("x", "<a>"), ("y", 3)], "tokens of pair 1 are \\[3\\]"), ([(None, ["<a>", "<b>"])], "description of '<a>', '<b>' is None")])
def test_what_is_refused_leaves_the_model_alone(words, message):
    model, tokenizer = load_base("tiny-llama")
    before, size = old_logits(model), len(tokenizer)
    with pytest.raises(GTIError, match=message): SidModel.extend(model, tokenizer, words)
    assert torch.equal(old_logits(model), before) and len(tokenizer) == size
    assert SidModel.extend(model, tokenizer, TOOLS).n_new == 3


@pytest.mark.parametrize("base", ["tiny-llama-padded", "tiny-gpt2-untied"])
@pytest.mark.parametrize("given", [dict(init="text_means"), dict(init="text_mean"), dict(init="text_mean", dataset="small"), dict(init="from_checkpoint", checkpoint="nowhere")])
def test_a_refused_start_leaves_the_model_alone(base, given):
    sids = SemanticIds(torch.stack([torch.arange(40) // 8, torch.arange(40) % 8], 1))
    if "dataset" in given: given = given | {"dataset": load_dataset("toy")}; given["dataset"].items = given["dataset"].items[:10]
    model, tokenizer = load_base(base)
    before, tied = old_logits(model), model.get_output_embeddings().weight is model.get_input_embeddings().weight
    sizes = model.config.vocab_size, model.get_input_embeddings().weight.shape
    with pytest.raises(GTIError): SidModel.extend(model, tokenizer, sids, **given)
    assert torch.equal(old_logits(model), before) and (model.config.vocab_size, model.get_input_embeddings().weight.shape) == sizes
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    extended = SidModel.extend(model, tokenizer, sids, init="text_mean", dataset=load_dataset("toy"))
    assert extended.tied == tied and torch.equal(extended.new_rows, draw_rows(extended, "text_mean", load_dataset("toy"))[0])


def test_names_that_hold_each_other():
    "One name inside another, and names side by side, all keep their ids."
    model = SidModel.extend(*load_base("tiny-llama"), {"<t>": "", "<t><t>": "", "<t>_1": "", "<t>_12": "", "@x y": "", "工具!": ""})
    for name, i in zip(model.token_names, model.new_ids.tolist()):
        for text in (name, f"a{name} b", f"{name}\n{name}"): assert model.tokenizer.encode(text, add_special_tokens=False).count(i) == text.count(name)


# %% rows of an earlier run

def noisy(base, sids):
    model = SidModel.extend(*load_base(base), sids)
    for i, p in enumerate(model.new_parameters()): torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(i))
    return model


SIDS = SemanticIds(torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0]]), [torch.eye(3), torch.eye(2)])


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded"])
@pytest.mark.parametrize("sids", [SIDS, TOOLS, PAIRS], ids=["sids", "descriptions", "pairs"])
def test_from_checkpoint(base, sids, tmp_path):
    first = noisy(base, sids)
    path = first.save_rows(tmp_path/"deep"/"rows.safetensors")
    second = SidModel.extend(*load_base(base), sids)
    initialize(second, "from_checkpoint", checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(first.new_parameters(), second.new_parameters()))
    third = noisy(base, sids); third.load_rows(path)
    assert all(torch.equal(a, b) for a, b in zip(first.new_parameters(), third.new_parameters()))
    assert not list(tmp_path.glob("**/*.part")) and not list(tmp_path.glob("**/.*"))


def test_from_checkpoint_with_a_bias(tmp_path):
    def biased():
        model, tokenizer = load_base("tiny-llama-untied")
        model.get_output_embeddings().bias = torch.nn.Parameter(torch.linspace(-1, 1, len(tokenizer)))
        return SidModel.extend(model, tokenizer, SIDS)
    first, second = biased(), biased()
    for i, p in enumerate(first.new_parameters()): torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(i))
    initialize(second, "from_checkpoint", checkpoint=first.save_rows(tmp_path/"rows.safetensors"))
    assert len(first.new_parameters()) == 3 and all(torch.equal(a, b) for a, b in zip(first.new_parameters(), second.new_parameters()))


def test_rows_that_do_not_belong_here(tmp_path):
    path = noisy("tiny-llama", SIDS).save_rows(tmp_path/"rows.safetensors")
    other_codes = SemanticIds(SIDS.codes.flip(0), SIDS.codebooks)
    for base, sids, key in (("tiny-qwen3", SIDS, "layers"), ("tiny-llama-shaken", SIDS, "old_rows"), ("tiny-llama", other_codes, "sids"), ("tiny-llama", TOOLS, "token_names")):
        plain, tokenizer = load_base(base.removesuffix("-shaken"))
        if base.endswith("-shaken"): plain.get_input_embeddings().weight.data[3, 4] += 1e-3
        model = SidModel.extend(plain, tokenizer, sids)
        before = model.new_rows.detach().clone()
        with pytest.raises(GTIError, match=f"its {key} are not this model's"): initialize(model, "from_checkpoint", checkpoint=path)
        assert torch.equal(model.new_rows, before)


def test_damaged_files_of_rows(tmp_path):
    model = noisy("tiny-llama", SIDS)
    good = model.save_rows(tmp_path/"rows.safetensors").read_bytes()
    flipped = bytearray(good); flipped[-5] ^= 1
    for data, message in ((good[:-7], "damaged or cut off"), (good[:20], "damaged or cut off"), (b"", "damaged or cut off"), (b"not safetensors at all", "damaged or cut off"), (bytes(flipped), "not those that were written")):
        (tmp_path/"bad.safetensors").write_bytes(data)
        with pytest.raises(GTIError, match=message): draw_rows(model, "from_checkpoint", checkpoint=tmp_path/"bad.safetensors")
    save_file(load_file(tmp_path/"rows.safetensors"), tmp_path/"bare.safetensors")
    with pytest.raises(GTIError, match="its token_names are not this model's"): model.load_rows(tmp_path/"bare.safetensors")
    save_file({"rows": torch.zeros(5, 32), "extra": torch.zeros(1)}, tmp_path/"more.safetensors", metadata=model.rows_meta())
    with pytest.raises(GTIError, match="holds .*extra.*, this model has rows"): model.load_rows(tmp_path/"more.safetensors")
    for missing in (tmp_path/"none.safetensors", tmp_path):
        with pytest.raises(GTIError, match="no such file"): model.load_rows(missing)
    model.new_rows.data[1, 3] = float("inf")
    with pytest.raises(GTIError, match="NaN or Inf"): draw_rows(noisy("tiny-llama", SIDS), "from_checkpoint", checkpoint=model.save_rows(tmp_path/"inf.safetensors"))


def test_a_file_of_rows_is_small_and_says_what_it_is(tmp_path):
    model = noisy("tiny-llama", SIDS)
    path = model.save_rows(tmp_path/"rows.safetensors")
    from safetensors import safe_open
    with safe_open(path, "np") as f: meta, rows = f.metadata(), f.get_tensor("rows")
    assert path.stat().st_size < 5 * 32 * 4 + 1000 and json.loads(meta["token_names"]) == model.token_names and set(meta) == {"token_names", "sids", "layers", "old_rows", "tensors"}
    np.testing.assert_array_equal(rows, model.new_rows.detach().numpy())
