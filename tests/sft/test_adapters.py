"LoRA: what trains, what is left in the model, and the folder of the adapters."

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
from sft_models import SIDS, config, shaped, weights
from transformers import AutoModelForCausalLM, TrainerCallback

from gti_nb.core import GTIError
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie
from gti_nb.prompts import retrieval_prompt
from gti_nb.sft.adapters import add_adapters, load_adapters, merge_adapters
from gti_nb.sft.stage import finetune


@pytest.mark.parametrize("name", ["llama", "qwen3-untied", "gpt2", "phi-biased", "gemma2-capped"])
def test_lora_trains_adapters_and_new_rows_and_leaves_a_plain_model(name, split, tmp_path):
    extended, ids = shaped(name), torch.arange(12)[None]
    before, rows = weights(extended), extended.new_rows.detach().clone()
    result = finetune(extended, split, config(steps=8, mode="lora", lora_r=4, learning_rate=1e-2), out_dir=tmp_path, progress=False)
    after = weights(extended)
    assert after.keys() == before.keys() and np.mean([r["loss"] for r in result.losses[-2:]]) < result.losses[0]["loss"]
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    layers = {n for n in moved if "weight" in n}
    assert (
        not torch.equal(extended.new_rows, rows)
        and layers
        and all(before[n].dim() == 2 for n in layers)
        and not any(n.endswith(("pretrained", "pretrained_bias")) for n in moved)
    )
    for n in layers:
        assert torch.linalg.matrix_rank((after[n] - before[n]).double(), rtol=1e-4) <= 4
    again = shaped(name)
    load_adapters(again, tmp_path / "adapter")
    torch.testing.assert_close(again.model(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(extended.merge()(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3)
    extended.save(tmp_path / "model")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3
    )


def test_lora_with_trained_pretrained_rows(split, tmp_path):
    extended = shaped("llama")
    rows = extended.pretrained_hash(backbone=False)
    finetune(extended, split, config(mode="lora", pretrained_rows="trained"), out_dir=tmp_path, progress=False)
    assert (
        extended.pretrained_hash(backbone=False) != rows and not (tmp_path / "adapter").exists()
    )  # such an adapter would not fit the base model


def test_peft_reads_the_adapter_folder(split, tmp_path):
    from peft import PeftModel

    extended, plain = shaped("llama"), shaped("llama")
    finetune(extended, split, config(mode="lora"), out_dir=tmp_path, progress=False)
    plain.load_rows(tmp_path / "sft.safetensors")
    theirs, ids = PeftModel.from_pretrained(plain.merge(), tmp_path / "adapter"), torch.arange(12)[None]
    torch.testing.assert_close(theirs(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3)


def test_a_model_with_adapters_inside_is_not_merged():
    extended = shaped("llama")
    add_adapters(extended)
    with pytest.raises(GTIError, match="merge_adapters"):
        extended.merge()
    merge_adapters(extended)
    assert not getattr(extended.merge(), "peft_config", None)


def test_a_failing_lora_run_takes_its_adapters_out(split):
    extended = shaped("llama")
    before = extended.pretrained_hash()

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        finetune(extended, split, config(mode="lora"), callbacks=[Fails()], progress=False)
    assert extended.pretrained_hash() == before and not any("lora" in n for n, _ in extended.model.named_modules())


def test_adapters_of_another_model_and_damaged_ones_are_refused(split, tmp_path):
    extended = shaped("llama")
    finetune(extended, split, config(mode="lora"), out_dir=tmp_path, progress=False)
    with pytest.raises(GTIError, match="another base model"):
        load_adapters(shaped("gpt2"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(GTIError, match="adapter_model.safetensors has other bytes than were written"):
        load_adapters(shaped("llama"), tmp_path / "adapter")
    (tmp_path / "adapter" / "hashes.json").unlink()  # as of an earlier version
    with pytest.raises(GTIError, match="NaN or Inf"):
        load_adapters(shaped("llama"), tmp_path / "adapter")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decode_while_adapters_train_is_that_of_the_merged_model(name, split):
    "Validation runs without the adapters' dropout, which is on again in the next step."
    extended, found_and_merged, dropping = shaped(name), [], []
    trie, prompts, gone = (
        SidTrie(SIDS),
        [retrieval_prompt(extended, split.history(u, "valid")) for u in range(8)],
        [split.past(u, "valid") for u in range(8)],
    )

    def validate():
        found, merged = beam_search(extended, prompts, trie, 10, gone), copy.deepcopy(extended)
        merge_adapters(merged)
        assert any("lora_A" in n for n, _ in extended.model.named_parameters()) and not any(
            "lora" in n for n, _ in merged.model.named_parameters()
        )
        found_and_merged.append((found, beam_search(merged, prompts, trie, 10, gone)))
        return {"score": found.scores[:, 0].mean().item()}

    class Dropping(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kw):
            dropping.append(all(m.training for n, m in extended.model.named_modules() if "lora_dropout" in n))

    finetune(
        extended,
        split,
        config(steps=6, eval_steps=2, mode="lora", lora_dropout=0.5, learning_rate=2e-2),
        validate=validate,
        callbacks=[Dropping()],
        progress=False,
    )
    for found, merged in found_and_merged:
        assert torch.equal(found.items, merged.items)
        torch.testing.assert_close(found.scores, merged.scores, atol=1e-4, rtol=0)
    assert len(found_and_merged) == 3 and dropping == [True] * 6
    assert not torch.equal(found_and_merged[0][0].items, found_and_merged[2][0].items)
