"assets.base: a GGUF file of one's own loads as the embedded one does, or says how."

import json

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers.pytorch_utils import Conv1D  # noqa: F401  transformers is imported before its GGUF reader

from gti_nb.assets import load_base
from gti_nb.core import GTIError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def for_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    "A matrix of queries or keys with the rows of each head in the order that GGUF keeps for Llama."
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, architecture: str = "llama"):
    "The tiny Llama as llama.cpp's tools write it."
    model, tokenizer = load_base("tiny-llama-untied")
    config, writer = model.config, GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([3 if name.startswith("<|") else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    names = dict(
        attn_norm="input_layernorm", ffn_norm="post_attention_layernorm", attn_v="self_attn.v_proj", attn_output="self_attn.o_proj"
    )
    names |= dict(ffn_gate="mlp.gate_proj", ffn_up="mlp.up_proj", ffn_down="mlp.down_proj")
    for layer in range(config.num_hidden_layers):
        here = f"model.layers.{layer}."
        for name, own in names.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", state[f"{here}{own}.weight"])
        for name, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            rotated = for_rotation(state[f"{here}self_attn.{name}_proj.weight"], heads)
            writer.add_tensor(f"blk.{layer}.attn_{name}.weight", np.ascontiguousarray(rotated))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_gguf_of_ones_own_is_the_model_it_was_made_from(form, tmp_path, cache, capsys):
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "mine.gguf"
    model, tokenizer = write_gguf(file)
    given = file if form == "file" else file.parent
    again, reread = load_base(given)
    ids = tokenizer("The Silent River", return_tensors="pt").input_ids
    assert torch.equal(reread("The Silent River", return_tensors="pt").input_ids, ids)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert file.is_file() and "converting" in capsys.readouterr().out
    load_base(given)
    assert "converting" not in capsys.readouterr().out, "converted twice"
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1


def test_a_gguf_that_cannot_be_read_says_how(tmp_path, cache):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(GTIError, match=r"a\.gguf: this GGUF cannot be converted: .*; take the model as its makers publish it"):
        load_base(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(GTIError, match=r"holds 2 GGUF files; name the one to read: a\.gguf, b\.gguf"):
        load_base(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(GTIError, match=r"notes\.txt: a file, expected a folder .* or a \.gguf file"):
        load_base(tmp_path / "notes.txt")
    assert not any(p.is_dir() for p in cache.iterdir()), "a failed conversion leaves nothing"
