"assets.tiny: every family, tied and padded or not, always with the same weights."

import pytest
import torch

from gti_nb.assets import load_base


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_tiny_models(family, tied, padded):
    before = torch.random.get_rng_state()
    model, tokenizer = load_base(f"tiny-{family}" + "-untied" * (not tied) + "-padded" * padded)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state was moved"
    rows, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (rows is head) == tied and len(rows) == len(head) == len(tokenizer) + 24 * padded
    ids = torch.tensor([tokenizer("The Silent River (1994)").input_ids])
    assert torch.equal(model(ids).logits, load_base(model.config.name_or_path)[0](ids).logits)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
