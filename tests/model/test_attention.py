"Attention by products against attention in fp64: values, gradients, masks, grouped heads, and when the fused one is taken."

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gti_nb.assets import load_base
from gti_nb.model.attention import NAME, attend_by_products, products


class Layer(nn.Module):
    is_causal = True

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


def draw(batch, heads, key_heads, tokens, keys, d=16, dtype=torch.bfloat16):
    random = torch.Generator().manual_seed(tokens)
    shapes = [(batch, heads, tokens, d), (batch, key_heads, keys, d), (batch, key_heads, keys, d)]
    return [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]


def exact(q, k, v, seen):
    "Attention in fp64, [batch, tokens, heads, d], and the gradients of its weighted sum."
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True).transpose(1, 2), (q, k, v)


def masks(batch, tokens, keys):
    "Causal, a window of three, and rows padded on the left of the past; what is seen."
    causal = torch.ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)[None, None]
    padded = causal.expand(batch, 1, -1, -1).clone()
    for row in range(batch):
        padded[row, :, :, : min(row, keys - tokens)] = False
    return {"causal": causal, "window": causal & ~causal.tril(keys - tokens - 3), "padded": padded}


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("tokens, keys", [(1, 7), (5, 5), (3, 40), (64, 64), (230, 230)])
@pytest.mark.parametrize("kind", ["none", "causal", "window", "padded"])
@pytest.mark.parametrize("as_numbers", [False, True])
def test_values_and_gradients_are_those_of_exact_attention(heads, key_heads, tokens, keys, kind, as_numbers):
    q, k, v = draw(3, heads, key_heads, tokens, keys)
    if kind == "none":
        if tokens not in (1, keys):
            pytest.skip("without a mask, transformers means causal attention over as many keys")
        seen, given = None if tokens == 1 else masks(3, tokens, keys)["causal"], None
    else:
        seen = masks(3, tokens, keys)[kind]
        given = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) if as_numbers else seen
    expected, inputs = exact(q, k, v, seen)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    out, _ = attend_by_products(Layer(heads // key_heads), q, k, v, given)
    assert type(out.grad_fn).__name__ != "ScaledDotProductFlashAttentionForCpuBackward0"
    (out * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    for ours, theirs in [(out, expected), *((a.grad, b.grad) for a, b in zip((q, k, v), inputs, strict=True))]:
        assert (ours.double() - theirs).norm() <= 0.01 * theirs.norm() + 1e-6


def test_scores_computed_in_parts_are_those_computed_at_once():
    whole = draw(8, 6, 2, 300, 300)  # 16 key heads with 270,000 scores each: one head at a time
    out, _ = attend_by_products(Layer(3), *whole, None)
    for row in range(8):
        one, _ = attend_by_products(Layer(3), *(x[row : row + 1] for x in whole), None)
        assert torch.equal(one[0], out[row])


@pytest.mark.parametrize("case", ["fp32", "long", "dropout", "not causal", "per head"])
def test_everything_else_is_the_fused_attention_to_the_bit(case):
    tokens = 513 if case == "long" else 20
    q, k, v = draw(2, 4, 2, tokens, tokens, dtype=torch.float32 if case == "fp32" else torch.bfloat16)
    settings = {"is_causal": False} if case == "not causal" else {"dropout": 0.5} if case == "dropout" else {}
    mask = torch.ones(2, 4, tokens, tokens, dtype=torch.bool).tril() if case == "per head" else None
    outs = []
    for attend in (attend_by_products, sdpa_attention_forward):
        torch.manual_seed(0)
        outs.append(attend(Layer(2), q, k, v, mask, **settings)[0])
    assert torch.equal(*outs)


def test_a_model_gets_its_attention_back_even_after_an_error():
    model, _ = load_base("tiny-llama")
    with pytest.raises(KeyError), products(model):
        assert model.config._attn_implementation == NAME
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with products(model):
        assert model.config._attn_implementation == "eager"
