"""Exact scores of whole catalogues against reading every item by itself, and the beam search against them."""

import numpy as np
import pytest
import torch
from decode.decoding import random_catalogue, random_model

from gti_nb.core import GTIError
from gti_nb.decode.beam import Beams, beam_search
from gti_nb.decode.readers import Reader
from gti_nb.decode.scores import beam_agreement, rank_all, score_all
from gti_nb.decode.trie import SidTrie
from gti_nb.sid.codes import SemanticIds

pytestmark = pytest.mark.filterwarnings("ignore:.*tree attention is not exact")


def one_by_one(extended, prompt: list[int], objective: str) -> torch.Tensor:
    ids = torch.cat([torch.tensor(prompt).expand(len(extended.token_ids), -1), extended.token_ids], 1)
    with torch.no_grad():
        logits = extended.model(ids).logits[:, -1 - extended.sids.levels : -1]
    total = torch.zeros(len(ids))
    for level, (start, size) in enumerate(zip(extended.sids.offsets, extended.sids.level_sizes, strict=True)):
        codes = slice(extended.n_pretrained + start, extended.n_pretrained + start + size)
        norm = logits[:, level] if objective == "logprob" else logits[:, level, codes]
        total += logits[:, level].gather(1, extended.token_ids[:, level : level + 1])[:, 0] - norm.logsumexp(-1)
    return total


@pytest.mark.parametrize("draw", range(24))
def test_scores_equal_reading_items_one_by_one(draw, monkeypatch):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    family, objective = ["llama", "gpt2", "qwen3", "gemma3", "bloom", "mistral"][draw % 6], ["logprob", "level"][draw % 2]
    for kind in Reader.__subclasses__():
        monkeypatch.setattr(kind, "codes_at_once", int(rng.integers(1, 12)))  # groups of nodes within and across parents
    extended = random_model(family, codes, sizes, draw)
    prompts = [rng.integers(5, 300, int(n)).tolist() for n in rng.integers(1, 20, 4)]
    scores = score_all(extended, prompts, SidTrie(extended.sids), batch_size=int(rng.integers(1, 5)), objective=objective)
    for row, prompt in zip(scores, prompts, strict=True):
        torch.testing.assert_close(row, one_by_one(extended, prompt, objective), atol=2e-4, rtol=0)


@pytest.mark.parametrize("draw", range(12))
def test_a_beam_as_wide_as_the_catalogue_agrees(draw):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    extended = random_model(["llama", "gpt2", "gemma2"][draw % 3], codes, sizes, draw)
    trie, n = SidTrie(extended.sids), len(codes)
    prompts = [rng.integers(5, 300, 6).tolist() for _ in range(3)]
    exclude = [rng.integers(n, size=int(rng.integers(0, n))) for _ in range(3)]
    found = beam_search(extended, prompts, trie, beams=n, exclude=exclude)
    exact = rank_all(score_all(extended, prompts, trie), trie, n, exclude)
    assert torch.equal(found.items, exact.items) and torch.equal(found.codes, exact.codes)
    assert beam_agreement(found, exact, (n,)).loc[n, ["overlap", "same_place", "same_list"]].tolist() == [1, 1, 1]


def test_exact_ties_follow_the_rule_of_the_search():
    sids = [[a, b] for a in range(4) for b in range(4)]
    extended = random_model("llama", np.array(sids[::-1] + sids), [4, 4], seed=0)
    extended.new_rows.data.zero_()
    trie = SidTrie(extended.sids)
    found, exact = beam_search(extended, [[5, 6]], trie, beams=32), rank_all(score_all(extended, [[5, 6]], trie), trie, 32)
    assert torch.equal(found.items, exact.items) and exact.items[0, :4].tolist() == [15, 16, 14, 17]


def test_agreement_by_hand():
    "Two users: one list as it should be, one with a swap and a miss."

    def lists(rows):
        return Beams(torch.tensor(rows), torch.zeros(len(rows), len(rows[0])), torch.zeros(len(rows), len(rows[0]), 2))

    table = beam_agreement(lists([[1, 2, 3, -1], [4, 6, 7, 9]]), lists([[1, 2, 3, -1], [4, 5, 6, 9]]), (1, 2, 4))
    assert table.overlap.tolist() == [1, 0.75, 0.875]
    assert table.same_place.tolist() == [1, 0.75, 0.75]
    assert table.same_list.tolist() == [1, 0.5, 0.5]


def test_nan_scores_and_impossible_widths_are_refused():
    trie = SidTrie(SemanticIds(torch.tensor([[0, 0], [1, 1]])))
    with pytest.raises(GTIError, match="scores: NaN in row 1"):
        rank_all(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), trie, 2)
    for width in (0, -1, 2.5):
        with pytest.raises(GTIError, match=f"width: got {width}"):
            rank_all(torch.zeros(1, 2), trie, width)
