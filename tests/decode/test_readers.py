"""Which way a model is read: prompts once, a tree where the mask is heeded, a cache per beam where it is not, the same scores."""

import copy

import numpy as np
import pytest
import torch
from decode.decoding import FAMILIES, check_lists, random_model
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from gti_nb.core import GTIError
from gti_nb.decode import selection
from gti_nb.decode.beam import beam_search
from gti_nb.decode.readers import RowReader, TreeReader, vocabulary_logsumexp
from gti_nb.decode.selection import choose_reader, reader_agrees, reading
from gti_nb.decode.trie import SidTrie
from gti_nb.sft.adapters import add_adapters, merge_adapters

CODES = np.random.default_rng(0).integers(4, size=(30, 3))
quiet = pytest.mark.filterwarnings("ignore:.*tree attention is not exact")


def model_of(family: str, seed: int = 0, **options):
    return random_model(family, CODES, [4, 4, 4], seed, **options)


def kind_of(extended, length: int):
    return choose_reader(extended, extended.model, SidTrie(extended.sids), length)


@quiet
@pytest.mark.parametrize("family", FAMILIES)
def test_reader_is_chosen_by_test(family):
    "Short prompts fit the windows; models that scale their logits, count positions or carry states get rows."
    extended = model_of(family)
    assert kind_of(extended, 6) is (RowReader if family in ("bloom", "granite", "lfm2") else TreeReader)
    assert kind_of(extended, 40) is (RowReader if family in ("bloom", "granite", "lfm2", "gemma2", "gemma3", "mistral") else TreeReader)


@quiet
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma", "neox"])
@pytest.mark.parametrize("objective", ["logprob", "level"])
def test_both_readers_give_the_same_lists(family, objective, monkeypatch):
    extended = model_of(family, 1)
    trie, prompts, exclude = SidTrie(extended.sids), [[5, 6, 7], [8] * 9, [9, 10, 11]], [[0, 1], [], [5]]
    tree = beam_search(extended, prompts, trie, beams=12, exclude=exclude, objective=objective)
    monkeypatch.setattr(selection, "choose_reader", lambda *_: RowReader)
    rows = beam_search(extended, prompts, trie, beams=12, exclude=exclude, objective=objective)
    assert torch.equal(tree.items, rows.items)
    torch.testing.assert_close(tree.scores, rows.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reader", [TreeReader, RowReader])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_inside_give_the_lists_of_the_merged_model(family, reader, monkeypatch):
    "In training mode or not, their dropout stays out of a decode."
    extended, prompts = model_of(family), [[5, 6, 7], [8] * 9, [9, 10, 11]]
    monkeypatch.setattr(selection, "choose_reader", lambda *_: reader)

    def decode(model):
        return beam_search(model, prompts, SidTrie(model.sids), beams=10)

    before = decode(extended)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in add_adapters(extended, r=4, dropout=0.5):
            torch.nn.init.normal_(p, std=0.3)
    merged = copy.deepcopy(extended)
    merge_adapters(merged)
    for training in (False, True):
        extended.model.train(training)
        found = decode(extended)
        check_lists(found, merged, merged.merge(), prompts, 10)
        assert extended.model.training == training and not torch.equal(found.items, before.items)


@quiet
def test_kernel_blind_to_masks_gets_rows_and_the_same_lists():
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
def test_blind_kernel_is_found_out_in_bf16_too():
    extended, trie = model_of("llama"), SidTrie(model_of("llama").sids)
    twin = extended.compute_model(torch.bfloat16)
    assert choose_reader(extended, twin, trie, 30) is TreeReader

    class Blind(TreeReader):
        def read_codes(self, level, ids, parents):
            return super().read_codes(level, ids, torch.zeros_like(parents))

    assert not reader_agrees(Blind, extended, twin, trie, 30)


def test_a_fallback_says_so_and_a_model_without_cache_is_refused():
    with pytest.warns(UserWarning, match="every beam carries a cache of its own"):
        beam_search(model_of("bloom"), [[5, 6]], SidTrie(model_of("bloom").sids), beams=3)
    extended = model_of("llama")
    extended.model.forward = lambda input_ids, past_key_values=None, _read=extended.model.forward, **kwargs: _read(
        input_ids=input_ids, logits_to_keep=kwargs["logits_to_keep"]
    )
    extended.model.model.forward = lambda *args, _read=extended.model.model.forward, **kwargs: _read(
        *args, **{k: v for k, v in kwargs.items() if k != "past_key_values"}
    )
    with pytest.raises(GTIError, match="no cache that beams could share"):
        kind_of(extended, 9)


def test_every_prompt_is_read_once():
    extended, prompts, fed = model_of("llama"), [[5] * 12, [6] * 12], []
    trie = SidTrie(extended.sids)
    beam_search(extended, prompts, trie, beams=10)  # the model is asked what it can do, once
    hook = extended.model.get_input_embeddings().register_forward_hook(lambda m, args, out: fed.append(tuple(args[0].shape)))
    beam_search(extended, prompts, trie, beams=10)
    assert fed == [(2, 12), (2, 4), (2, 10)]  # the prompts, then one position per beam: never W copies
    fed.clear()
    beam_search(extended, [[5, 6, 7] + p for p in prompts], trie, beams=10)
    fed.clear()
    beam_search(extended, [[5, 6, 7] + p for p in prompts], trie, beams=10, batch_size=1)
    hook.remove()
    assert fed == [(1, 3), *[(1, 12), (1, 4), (1, 10)] * 2]  # the common beginning once for all batches


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


def test_the_logsumexp_is_exact_in_blocks():
    extended = model_of("gemma2", tied=False)
    hidden, rows = torch.randn(5000, 32), torch.randn(3000, 32)
    bias = torch.randn(3000)
    whole = extended.soft_cap(hidden @ rows.T + bias).logsumexp(-1)  # in blocks of 256 rows
    torch.testing.assert_close(vocabulary_logsumexp(extended, hidden, rows, bias), whole, atol=1e-5, rtol=0)


def test_mode_is_restored_when_the_block_raises():
    extended = model_of("llama")
    extended.model.train()
    with pytest.raises(KeyError), reading(extended, [[5]], SidTrie(extended.sids), "logprob", 1, torch.float32):
        raise KeyError
    assert extended.model.training
