"""Which reader a model gets: a tree where it respects the mask, a cache per beam where it does not, and what is refused."""

import numpy as np
import pytest
import torch
from decode.decoding import FAMILIES, check_lists, random_model
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from gti_nb.core import GTIError
from gti_nb.decode import selection
from gti_nb.decode.beam import beam_search
from gti_nb.decode.readers import RowReader, TreeReader
from gti_nb.decode.selection import choose_reader, reader_agrees, reading
from gti_nb.decode.trie import SidTrie

CODES = np.random.default_rng(0).integers(4, size=(30, 3))
quiet = pytest.mark.filterwarnings("ignore:.*tree attention is not exact")


def model_of(family: str, seed: int = 0, **options):
    return random_model(family, CODES, [4, 4, 4], seed, **options)


def kind_of(extended, length: int):
    return choose_reader(extended, extended.model, SidTrie(extended.sids), length)


@quiet
@pytest.mark.parametrize("family", FAMILIES)
def test_reader_is_chosen_by_test(family):
    "Short prompts fit the windows; models that count positions or carry states get rows."
    extended = model_of(family)
    assert kind_of(extended, 6) is (RowReader if family in ("bloom", "lfm2") else TreeReader)
    assert kind_of(extended, 40) is (RowReader if family in ("bloom", "lfm2", "gemma2", "gemma3", "mistral") else TreeReader)


@quiet
def test_a_kernel_blind_to_masks_gets_rows_and_the_same_lists():
    "A kernel like FlashAttention's: causal by position in the cache, whatever the mask says."

    def blind(module, query, key, value, attention_mask, scaling=None, **kwargs):
        n, m = query.shape[2], key.shape[2]
        causal = torch.arange(m) <= torch.arange(m - n, m)[:, None]
        groups = query.shape[1] // key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=causal, scale=scaling
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("blind", blind)
    AttentionMaskInterface.register("blind", sdpa_mask)
    extended, prompts = model_of("llama"), [[5, 6, 7], [8] * 9]
    plain = extended.merge()
    extended.model.set_attn_implementation("blind")
    assert kind_of(extended, 12) is RowReader
    check_lists(beam_search(extended, prompts, SidTrie(extended.sids), beams=10), extended, plain, prompts, 10)


@quiet
def test_a_kernel_blind_to_masks_is_detected_in_bf16_too():
    extended, trie = model_of("llama"), SidTrie(model_of("llama").sids)
    twin = extended.compute_model(torch.bfloat16)
    assert choose_reader(extended, twin, trie, 30) is TreeReader

    class Blind(TreeReader):
        def read_codes(self, level, ids, parents):
            return super().read_codes(level, ids, torch.zeros_like(parents))

    assert not reader_agrees(Blind, extended, twin, trie, 30)


def test_a_fallback_warns_and_a_model_without_cache_is_read_anew():
    with pytest.warns(UserWarning, match="every beam keeps a cache of its own"):
        beam_search(model_of("bloom"), [[5, 6]], SidTrie(model_of("bloom").sids), beams=3)
    extended = model_of("llama")
    extended.model.forward = lambda input_ids, past_key_values=None, _read=extended.model.forward, **kwargs: _read(
        input_ids=input_ids, logits_to_keep=kwargs["logits_to_keep"]
    )
    extended.model.model.forward = lambda *args, _read=extended.model.model.forward, **kwargs: _read(
        *args, **{k: v for k, v in kwargs.items() if k != "past_key_values"}
    )
    plain, prompts = extended.merge(), [[5, 6, 7], [8] * 9]
    with pytest.warns(UserWarning, match="every beam is read anew"):
        found = beam_search(extended, prompts, SidTrie(extended.sids), beams=10)
    check_lists(found, extended, plain, prompts, 10)


def test_longer_prompts_are_tested_again(monkeypatch):
    extended, asked = model_of("llama"), []

    def counted(kind, *args):
        asked.append(args[-1])
        return reader_agrees(kind, *args)

    monkeypatch.setattr(selection, "reader_agrees", counted)
    for n in (10, 8, 10, 30, 20):
        kind_of(extended, n)
    assert asked == [10, 30]


def test_a_kernel_that_cannot_run_says_why():
    extended = model_of("llama")
    extended.model.config._attn_implementation = "no-such-kernel"
    with pytest.raises(GTIError, match="attn_implementation: got 'no-such-kernel'"):
        beam_search(extended, [[5, 6]], SidTrie(extended.sids))


def test_mode_is_restored_when_the_block_raises():
    extended = model_of("llama")
    extended.model.train()
    with pytest.raises(KeyError), reading(extended, [[5]], SidTrie(extended.sids), "logprob", 1, torch.float32):
        raise KeyError
    assert extended.model.training
