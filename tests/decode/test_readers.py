"""Reading prompts once: both readers give the same lists, with adapters too, and exact scores."""

import copy

import numpy as np
import pytest
import torch
from decode.decoding import check_lists, random_model

from gti_nb.decode import selection
from gti_nb.decode.beam import beam_search
from gti_nb.decode.readers import RowReader, TreeReader, vocabulary_logsumexp
from gti_nb.decode.trie import SidTrie
from gti_nb.sft.adapters import add_adapters, merge_adapters

CODES = np.random.default_rng(0).integers(4, size=(30, 3))
quiet = pytest.mark.filterwarnings("ignore:.*tree attention is not exact")


def model_of(family: str, seed: int = 0, **options):
    return random_model(family, CODES, [4, 4, 4], seed, **options)


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


def test_the_logsumexp_is_exact_in_blocks():
    extended = model_of("gemma2", tied=False)
    hidden, rows = torch.randn(5000, 32), torch.randn(3000, 32)
    bias = torch.randn(3000)
    whole = extended.rule(hidden @ rows.T + bias).logsumexp(-1)  # in blocks of 256 rows
    torch.testing.assert_close(vocabulary_logsumexp(extended, hidden, rows, bias), whole, atol=1e-5, rtol=0)
