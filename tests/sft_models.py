"Small random models of several families, and the batches and settings that the tests of fine-tuning use."

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gti_nb.assets import load_base
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.batches import example_batches
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.tasks import make_tasks
from gti_nb.sid.codes import SemanticIds

SIDS = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))
SMALL = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=512,
    initializer_range=0.15,
    pad_token_id=0,
)
SHAPES = {  # name -> model type, settings
    "llama": ("llama", dict(tie_word_embeddings=True)),
    "llama-untied": ("llama", dict(tie_word_embeddings=False)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("qwen3", dict(head_dim=8, tie_word_embeddings=True)),
    "qwen3-untied": ("qwen3", dict(head_dim=8, tie_word_embeddings=False)),
    "gemma": ("gemma", dict(head_dim=8)),
    "gemma2-capped": (
        "gemma2",
        dict(head_dim=8, final_logit_softcapping=5.0, attn_logit_softcapping=20.0, query_pre_attn_scalar=8, sliding_window=16),
    ),
    "phi-biased": ("phi", dict(tie_word_embeddings=False)),
    "gpt2": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=512)),
    "gpt2-untied": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=512, tie_word_embeddings=False)),
}


def shaped(name, init="normal_matched"):
    "A random model of a family, extended."
    family, own = SHAPES[name]
    tokenizer = load_base("tiny-llama")[1]
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **(dict(initializer_range=0.15) if family == "gpt2" else SMALL), **own)
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if family == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    extended = ExtendedModel.extend(model, tokenizer, SIDS)
    initialize(extended, init)
    return extended


def mixed(extended, toy, split, steps=4, batch_size=6, seed=0):
    return example_batches(
        make_tasks(["retrieval", "item2index", "fusion_sid_to_title"], extended, toy, split), steps=steps, batch_size=batch_size, seed=seed
    )


def config(**kw):
    return SFTConfig(**dict(dict(steps=4, batch_size=6, learning_rate=3e-3, precision="fp32", warmup_steps=1), **kw))


def weights(extended):
    return {n: p.detach().clone() for n, p in extended.model.named_parameters()}


def assert_close(a, b, atol=2e-5):
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n], atol=atol, rtol=1e-3, msg=n)
