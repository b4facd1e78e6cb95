"Tiny random models of many families, by the names their configurations have."

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gti_nb.assets.tiny import tiny_tokenizer

_SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=512)
_LLAMA = _SIZES | dict(num_key_value_heads=2, head_dim=8)
_GEMMA = _LLAMA | dict(query_pre_attn_scalar=8)
_MIXED = dict(sliding_window=64, layer_types=["sliding_attention", "full_attention"])
_EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=32)
# title -> model type and settings
FAMILIES: dict[str, tuple[str, dict]] = {
    "Llama": ("llama", _LLAMA),
    "Qwen 2": ("qwen2", _LLAMA),
    "Qwen 3": ("qwen3", _LLAMA),
    "Qwen 3 MoE": ("qwen3_moe", _LLAMA | _EXPERTS | dict(num_experts=4)),
    "Mixtral": ("mixtral", _LLAMA | dict(num_local_experts=4, num_experts_per_tok=2)),
    "Gemma 1": ("gemma", _LLAMA),
    "Gemma 2": ("gemma2", _GEMMA | _MIXED | dict(final_logit_softcapping=5.0, attn_logit_softcapping=20.0)),
    "Gemma 3": ("gemma3_text", _GEMMA | _MIXED),
    "Gemma 3n": (
        "gemma3n_text",
        _LLAMA
        | dict(
            layer_types=["full_attention", "full_attention"],
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=320,
            laurel_rank=4,
            num_kv_shared_layers=0,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0, 0.0],
            intermediate_size=[48, 48],
        ),
    ),
    "Gemma 4": ("gemma4_text", _LLAMA | _MIXED | dict(global_head_dim=16, hidden_size_per_layer_input=0)),
    "Gemma 4 E2B, E4B": (
        "gemma4_text",
        _LLAMA | _MIXED | dict(global_head_dim=16, hidden_size_per_layer_input=8, vocab_size_per_layer_input=320),
    ),
    "Mistral": ("mistral", _LLAMA | dict(sliding_window=64)),
    "Phi 1, 2": ("phi", _SIZES),
    "Phi 3, 4": ("phi3", _SIZES | dict(num_key_value_heads=2, original_max_position_embeddings=512)),
    "Granite": ("granite", _LLAMA | dict(logits_scaling=8.0, embedding_multiplier=3.0, residual_multiplier=0.5)),
    "Cohere": ("cohere", _LLAMA | dict(logit_scale=0.25)),
    "Cohere 2": ("cohere2", _LLAMA | _MIXED | dict(logit_scale=0.25)),
    "OLMo": ("olmo", _LLAMA),
    "OLMo 2": ("olmo2", _LLAMA),
    "OLMo 3": ("olmo3", _LLAMA | _MIXED),
    "SmolLM 3": ("smollm3", _LLAMA),
    "GPT-2": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=512)),
    "GPT-NeoX": ("gpt_neox", _SIZES),
    "GPT-Neo": (
        "gpt_neo",
        dict(
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=20,
            max_position_embeddings=512,
        ),
    ),
    "OPT": (
        "opt",
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, max_position_embeddings=512, word_embed_proj_dim=16),
    ),
    "LFM2": ("lfm2", _LLAMA | dict(layer_types=["conv", "full_attention"])),
    "BLOOM": ("bloom", dict(hidden_size=32, n_layer=2, n_head=4)),
    "Mamba": ("mamba", dict(hidden_size=32, num_hidden_layers=2, state_size=8)),
    "Falcon H1": (
        "falcon_h1",
        _LLAMA
        | dict(lm_head_multiplier=0.3, embedding_multiplier=2.0, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8)
        | dict(mamba_d_state=8, mamba_n_groups=1),
    ),
    "BART": ("bart", dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)),
    "BERT": ("bert", _SIZES),
}


def plain_model(family: str, **settings) -> PreTrainedModel:
    "A random model of a family, far enough from uniform for its losses to tell."
    kind, own = FAMILIES[family]
    tokenizer = tiny_tokenizer()
    given = dict(vocab_size=len(tokenizer), initializer_range=0.15, bos_token_id=1, eos_token_id=2, pad_token_id=0) | own | settings
    config = AutoConfig.for_model(kind, **given)
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout"):
        if getattr(config, name, None):
            setattr(config, name, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
