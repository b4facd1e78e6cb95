"Random models and catalogues for the decoding tests, and what transformers and plain Python make of them."

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor

from gti_nb.assets import load_base
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds

TOKENIZER = load_base("tiny-llama")[1]
_LLAMA = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=48,
    max_position_embeddings=512,
)
_MIXED = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
# name -> kind of configuration and its settings; the second half cannot be decoded with a tree mask, at least beyond its window
FAMILIES = {
    "llama": ("llama", _LLAMA),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA),
    "gpt2": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=512)),
    "neox": (
        "gpt_neox",
        dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=512),
    ),
    "gemma": ("gemma", _LLAMA),
    "gemma2": ("gemma2", _LLAMA | _MIXED | dict(query_pre_attn_scalar=8, final_logit_softcapping=5.0)),
    "gemma3": ("gemma3_text", _LLAMA | _MIXED | dict(query_pre_attn_scalar=8)),
    "mistral": ("mistral", _LLAMA | dict(sliding_window=8)),
    "bloom": ("bloom", dict(hidden_size=32, n_layer=2, n_head=4)),
    "granite": ("granite", _LLAMA | dict(logits_scaling=2.0)),
    "lfm2": ("lfm2", _LLAMA | dict(layer_types=["conv", "full_attention"])),
}


def random_model(family: str, codes, level_sizes: list[int], seed: int, tied: bool = True) -> ExtendedModel:
    "A random model with a catalogue; rows wide enough apart that no two items tie."
    kind, settings = FAMILIES[family]
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(TOKENIZER),
        tie_word_embeddings=tied,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        extended = ExtendedModel.extend(model, TOKENIZER, SemanticIds(torch.as_tensor(codes), [torch.eye(k) for k in level_sizes]))
        for p in extended.new_parameters():
            p.data = torch.randn(p.shape)
    return extended


def random_catalogue(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    "Unequal branching, prefixes with one child, collisions now and then."
    levels = int(rng.integers(1, 5))
    sizes, n = [int(k) for k in rng.integers(2, 9, levels)], int(rng.integers(1, 60))
    skewed = rng.random() < 0.5
    columns = [np.minimum(rng.geometric(0.35, n) - 1, k - 1) if skewed else rng.integers(k, size=n) for k in sizes]
    return np.stack(columns, 1), sizes


class LevelObjective(LogitsProcessor):
    "Log-probabilities of the allowed codes, normalized among all codes of their level."

    def __init__(self, allowed, level_of):
        self.allowed, self.level_of = allowed, level_of

    def __call__(self, input_ids, scores):
        out, level = torch.full_like(scores, float("-inf")), self.level_of(input_ids)
        for row, ids in enumerate(input_ids):
            keep = self.allowed(None, ids)
            out[row, keep] = (scores[row] - scores[row, level].logsumexp(0))[keep]
        return out


def generated(plain, extended: ExtendedModel, prompt: list[int], beams: int, objective: str = "logprob") -> dict[tuple, float]:
    "What transformers returns: complete SIDs of the catalogue with their scores, best first, without fillers and duplicates."
    sids, n_pretrained = extended.sids, extended.n_pretrained
    starts = np.cumsum([0, *sids.level_sizes])
    known = set(map(tuple, sids.codes.tolist()))
    follows: dict[tuple, list[int]] = {}
    for sid in sorted(known):
        for level, code in enumerate(sid):
            follows.setdefault(sid[:level], []).append(code)

    def allowed(_, ids):
        prefix = tuple(int(t) - n_pretrained - int(starts[level]) for level, t in enumerate(ids[len(prompt) :]))
        codes = sorted(set(follows.get(prefix, [0])))  # a filler beam gets any code, its score is -inf already
        return [int(n_pretrained + starts[len(prefix)] + c) for c in codes]

    def level_of(ids):
        level = ids.shape[1] - len(prompt)
        return slice(int(n_pretrained + starts[level]), int(n_pretrained + starts[level + 1]))

    how = dict(prefix_allowed_tokens_fn=allowed) if objective == "logprob" else dict(logits_processor=[LevelObjective(allowed, level_of)])
    out = plain.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        max_new_tokens=sids.levels,
        length_penalty=0.0,
        early_stopping=True,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **how,
    )
    best = {}
    for row, score in zip(out.sequences[:, len(prompt) :].tolist(), out.sequences_scores.tolist(), strict=True):
        sid = tuple(t - n_pretrained - int(starts[level]) for level, t in enumerate(row))
        if sid in known and score > -1e6 and sid not in best:
            best[sid] = score
    return best


def check_lists(found, extended: ExtendedModel, plain, prompts: list[list[int]], beams: int, objective: str = "logprob") -> None:
    "Ordered lists, scores and codes of `found` are those of `generate`; items with equal codes come in the order of item numbers."
    for b, prompt in enumerate(prompts):
        best = generated(plain, extended, prompt, beams, objective)
        expected = [(item, sid, score) for sid, score in best.items() for item in extended.sids.items_of(sid)][:beams]
        n = len(expected)
        assert found.items[b].tolist() == [item for item, _, _ in expected] + [-1] * (beams - n)
        assert found.codes[b].tolist() == [list(sid) for _, sid, _ in expected] + [[-1] * extended.sids.levels] * (beams - n)
        torch.testing.assert_close(found.scores[b, :n], torch.tensor([score for _, _, score in expected]), atol=2e-4, rtol=0)
        assert torch.isneginf(found.scores[b, n:]).all()
