"New tokens in tokenizers and models of several families, and the plain folder that a model is saved as."

import subprocess
import sys

import pytest
import torch
import transformers

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds

TINY = [f"tiny-{family}{tie}{pad}" for family in ("llama", "qwen3", "gpt2") for tie in ("", "-untied") for pad in ("", "-padded")]
SIDS = SemanticIds(torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0]]), [torch.eye(3), torch.eye(2)])


def shaken(base):
    extended = ExtendedModel.extend(*load_base(base), SIDS)
    noise = torch.Generator().manual_seed(0)
    for p in extended.new_parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    return extended


@pytest.mark.parametrize("base", TINY)
def test_logits_of_pretrained_tokens_are_those_of_the_base_model(base):
    ids = torch.tensor([[5, 9, 40, 7]])
    plain, tokenizer = load_base(base)
    extended = shaken(base)
    with torch.no_grad():
        before, after = plain(ids).logits, extended.model(ids).logits
    assert extended.n_pretrained == len(tokenizer)
    assert after.shape[-1] == extended.n_pretrained + 5
    torch.testing.assert_close(after[..., : extended.n_pretrained], before[..., : extended.n_pretrained])


@pytest.mark.parametrize("base", TINY)
def test_merged_folder_loads_in_plain_transformers_with_identical_logits(base, tmp_path):
    extended = shaken(base)
    ids = torch.tensor([[5, 9, *extended.token_ids[1].tolist(), 7, *extended.token_ids[2].tolist()]])
    extended.save(tmp_path / "model")
    with torch.no_grad():
        torch.save(extended.model(ids).logits, tmp_path / "logits.pt")
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r})
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "model")!r})
ids = torch.tensor({ids.tolist()})
assert tokenizer.encode("<c_0>") != [1] and tokenizer.encode("<a_2><b_0>", add_special_tokens=False) == {extended.token_ids[1].tolist()}
with torch.no_grad(): gap = (model.eval()(ids).logits - torch.load({str(tmp_path / "logits.pt")!r})).abs().max().item()
tied = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
assert gap < 1e-5 and tied == {extended.tied} and "gti_nb" not in sys.modules, (gap, tied)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded"])
def test_saved_model_splits_again(base, tmp_path):
    extended = shaken(base)
    extended.save(tmp_path / "model")
    again = ExtendedModel.load(tmp_path / "model")
    assert again.pretrained_hash() == extended.pretrained_hash() and again.tied == extended.tied
    assert all(torch.equal(a, b) for a, b in zip(again.new_parameters(), extended.new_parameters(), strict=True))
    assert torch.equal(again.token_ids, extended.token_ids)


def test_generate_works_on_the_split_model():
    extended = shaken("tiny-llama")
    out = extended.model.generate(torch.tensor([[5, 9, 40, 7]]), max_new_tokens=4, do_sample=False)
    assert out.shape[1] >= 5


def test_bf16_copy_shares_the_new_rows():
    extended = shaken("tiny-qwen3-untied")
    copy = extended.compute_model(torch.bfloat16)
    extended.new_rows.data.fill_(0.25)
    assert torch.equal(copy.get_input_embeddings().rows.new, extended.new_rows)
    assert copy.get_input_embeddings().rows.pretrained.dtype == torch.bfloat16 and extended.pretrained_rows.dtype == torch.float32


def test_rows_of_another_run(tmp_path):
    extended = shaken("tiny-llama")
    extended.save_rows(tmp_path / "rows.safetensors")
    other_codes = ExtendedModel.extend(*load_base("tiny-llama"), SemanticIds(SIDS.codes.flip(0), SIDS.codebooks))
    with pytest.raises(GTIError, match="its sids are not this model's"):
        other_codes.load_rows(tmp_path / "rows.safetensors")
    extended.new_rows.data[0, 0] = float("nan")
    extended.save_rows(tmp_path / "nan.safetensors")
    with pytest.raises(GTIError, match="NaN"):
        shaken("tiny-llama").load_rows(tmp_path / "nan.safetensors")


def test_tokens_keep_their_ids_inside_text():
    extended = shaken("tiny-llama")
    for name, i in zip(extended.token_names, extended.new_ids.tolist(), strict=True):
        for text in (name, f"a{name}b", f" {name} {name}"):
            assert extended.tokenizer.encode(text, add_special_tokens=False).count(i) == text.count(name)
    assert extended.tokenizer.decode(extended.token_ids[1], skip_special_tokens=True).replace(" ", "") == "<a_2><b_0>"


def test_described_tokens_without_semantic_ids():
    described = ExtendedModel.extend(*load_base("tiny-llama"), {"<calculator>": "adds numbers", "<calendar>": "knows dates"})
    assert described.n_new == 2 and described.sids is None and described.descriptions["<calendar>"] == "knows dates"
    with pytest.raises(GTIError, match="no new tokens"):
        ExtendedModel.extend(*load_base("tiny-llama"), {})


@pytest.mark.parametrize("labels", [False, True])
def test_a_class_that_keeps_its_vocabulary_size_computes_its_own_loss(labels):
    config = transformers.Gemma2Config(
        vocab_size=len(load_base("tiny-llama")[1]),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    extended = ExtendedModel.extend(
        transformers.AutoModelForCausalLM.from_config(config).eval(),
        load_base("tiny-llama")[1],
        {"<tool_1>": "adds", "<tool_2>": "divides"},
    )
    ids = torch.tensor([[1, 2, *extended.new_ids.tolist()]])
    out = extended.model(ids, labels=ids if labels else None)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), ids[0, 1:])
    assert out.logits.shape[-1] == extended.n_pretrained + 2 and (not labels or abs(out.loss - expected) < 1e-5)
