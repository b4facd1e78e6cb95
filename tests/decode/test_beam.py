"""The beam search against `generate(num_beams=W, prefix_allowed_tokens_fn=...)`, list for list, on random models and catalogues."""

import numpy as np
import pytest
import torch
from decode.decoding import FAMILIES, check_lists, random_catalogue, random_model

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.decode.beam import beam_search
from gti_nb.decode.scores import score_all
from gti_nb.decode.trie import SidTrie, allowed_codes
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds

pytestmark = pytest.mark.filterwarnings("ignore:.*tree attention is not exact")


@pytest.mark.parametrize("draw", range(200))
def test_equals_generate(draw):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    extended = random_model(list(FAMILIES)[draw % len(FAMILIES)], codes, sizes, seed=draw, tied=bool(rng.random() < 0.5))
    prompts = [rng.integers(5, extended.n_pretrained + extended.n_new, int(n)).tolist() for n in rng.integers(1, 30, 3)]
    beams = int(rng.choice([2, 3, 5, 10, 20, 70]))
    found = beam_search(extended, prompts, SidTrie(extended.sids), beams=beams, batch_size=int(rng.integers(1, 4)))
    check_lists(found, extended, extended.merge(), prompts[:2], beams)


@pytest.mark.parametrize("draw", range(16))
def test_level_objective_equals_generate_with_its_scores(draw):
    rng = np.random.default_rng(1000 + draw)
    codes, sizes = random_catalogue(rng)
    extended = random_model(["llama", "gpt2", "gemma2", "bloom"][draw % 4], codes, sizes, seed=draw)
    prompts, beams = [rng.integers(5, extended.n_pretrained, int(n)).tolist() for n in (6, 11)], int(rng.choice([2, 5, 20]))
    found = beam_search(extended, prompts, SidTrie(extended.sids), beams=beams, objective="level")
    check_lists(found, extended, extended.merge(), prompts, beams, "level")


@pytest.mark.parametrize(
    "codes, sizes, beams",
    [
        ([[1, 2, 0]], [3, 3, 3], 5),  # one item
        ([[0, 0], [1, 1], [2, 2]], [3, 3], 20),  # single-child nodes, more beams than leaves
        ([[0, k] for k in range(8)] + [[1, 0]], [2, 8], 5),  # more beams than first codes, unequal branching
        ([[0, 0], [0, 0], [0, 0], [1, 1]], [2, 2], 2),  # a collision wider than the list
    ],
    ids=["one item", "fewer leaves", "few first codes", "collision"],
)
@pytest.mark.parametrize("family, tied", [("llama", True), ("gpt2", False), ("bloom", True)])
def test_edge_catalogues_equal_generate(family, tied, codes, sizes, beams):
    extended, prompts = random_model(family, codes, sizes, 3, tied), [[7, 8, 9], [11] * 20]
    check_lists(beam_search(extended, prompts, SidTrie(extended.sids), beams=beams), extended, extended.merge(), prompts, beams)


@pytest.mark.parametrize("n_items", [150, 3000], ids=["above the leaves", "below the leaves"])
def test_200_beams_equal_generate(n_items):
    codes = np.random.default_rng(0).integers(20, size=(n_items, 3))
    extended = random_model("qwen3", codes, [20] * 3, seed=0)
    check_lists(beam_search(extended, [[5, 6, 7, 8]], SidTrie(extended.sids), beams=200), extended, extended.merge(), [[5, 6, 7, 8]], 200)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3", "bloom"])
def test_batches_do_not_change_results(family):
    rng = np.random.default_rng(0)
    extended = random_model(family, rng.integers(6, size=(80, 3)), [6, 6, 6], seed=1)
    prompts = [rng.integers(5, extended.n_pretrained, n).tolist() for n in (3, 40, 1, 17, 17, 90, 8)]
    trie = SidTrie(extended.sids)
    exclude = [rng.integers(80, size=int(n)) for n in rng.integers(0, 40, 7)]
    alone, some, together = (beam_search(extended, prompts, trie, beams=10, batch_size=n, exclude=exclude) for n in (1, 3, 7))
    for other in (some, together):
        assert torch.equal(alone.items, other.items) and torch.equal(alone.codes, other.codes)
        assert (alone.scores - other.scores).abs().max() < 1e-4


def test_one_beam_is_greedy():
    extended = random_model("llama", np.random.default_rng(5).integers(6, size=(50, 3)), [6, 6, 6], seed=5)
    trie, prompt, greedy = SidTrie(extended.sids), [5, 60, 7, 80], ()
    for level in range(3):
        ids = torch.tensor([prompt + [extended.n_pretrained + 6 * place + c for place, c in enumerate(greedy)]])
        with torch.no_grad():
            logits = extended.model(ids).logits[0, -1, extended.n_pretrained + 6 * level :]
        greedy += (max(allowed_codes(trie, greedy), key=lambda c: logits[c]),)
    found = beam_search(extended, [prompt], trie, beams=1)
    assert tuple(found.codes[0, 0].tolist()) == greedy and found.items.shape == (1, 1)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_ties_go_to_the_lower_code_then_the_lower_item(family):
    sids = [[a, b] for a in range(4) for b in range(4)]
    extended = random_model(family, np.array(sids[::-1] + sids), [4, 4], seed=0)  # two items per semantic ID; 15 and 16 have the first
    extended.new_rows.data.zero_()
    found = beam_search(extended, [[5, 6, 7], [8]], SidTrie(extended.sids), beams=6)
    assert found.codes.tolist() == [[[0, 0], [0, 0], [0, 1], [0, 1], [0, 2], [0, 2]]] * 2
    assert found.items.tolist() == [[15, 16, 14, 17, 13, 18]] * 2


def test_generation_config_and_training_mode_do_not_matter():
    extended = random_model("gpt2", np.random.default_rng(2).integers(5, size=(30, 3)), [5, 5, 5], seed=2)
    trie, prompts = SidTrie(extended.sids), [[9, 8, 7], [6]]
    before = beam_search(extended, prompts, trie)
    for key, value in dict(do_sample=True, temperature=3.0, repetition_penalty=5.0, num_beams=4).items():
        setattr(extended.model.generation_config, key, value)
    extended.model.train()
    after = beam_search(extended, prompts, trie)
    assert torch.equal(before.items, after.items) and torch.equal(before.scores, after.scores)
    assert extended.model.training
    with pytest.raises(GTIError):
        beam_search(extended, [[]], trie)
    assert extended.model.training


def test_bf16_gives_fp32_scores_close_to_the_exact_ones():
    extended = random_model("qwen3", np.random.default_rng(4).integers(8, size=(40, 2)), [8, 8], seed=4)
    trie, prompts = SidTrie(extended.sids), [[5, 6, 7, 8], [9, 10]]
    full, half = (beam_search(extended, prompts, trie, beams=40, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert half.scores.dtype == torch.float32
    for b in range(2):
        a, c = (dict(zip(f.items[b].tolist(), f.scores[b].tolist(), strict=True)) for f in (full, half))
        assert set(a) == set(c) and max(abs(a[i] - c[i]) for i in a) < 0.3


def test_diverged_model_is_refused():
    extended = random_model("llama", [[0, 0], [1, 1]], [2, 2], seed=0)
    trie = SidTrie(extended.sids)
    for _ in range(2):  # the first time before anything is known of the model
        extended.new_rows.data.fill_(float("nan"))
        with pytest.raises(GTIError, match="NaN or Inf"):
            beam_search(extended, [[5, 6]], trie)
        extended.new_rows.data.zero_()
        beam_search(extended, [[5, 6]], trie)


@pytest.mark.parametrize("draw", range(24))
def test_excluding_items_is_searching_the_catalogue_without_them(draw):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    extended = random_model(["llama", "gpt2", "mistral"][draw % 3], codes, sizes, draw)
    prompts = [rng.integers(3, 300, int(n)).tolist() for n in rng.integers(1, 9, 3)]
    exclude = [rng.choice(len(codes), int(rng.integers(0, len(codes))), replace=False) for _ in prompts]
    beams = int(rng.choice([2, 5, 30]))
    found = beam_search(extended, prompts, SidTrie(extended.sids), beams=beams, exclude=exclude)
    for b, (prompt, gone) in enumerate(zip(prompts, exclude, strict=True)):
        left = np.setdiff1d(np.arange(len(codes)), gone)
        alone = beam_search(extended, [prompt], SidTrie(SemanticIds(extended.sids.codes[left], extended.sids.codebooks)), beams=beams)
        n = int((alone.items[0] >= 0).sum())
        assert found.items[b].tolist() == [*left[alone.items[0, :n].numpy()].tolist(), *[-1] * (beams - n)]
        torch.testing.assert_close(found.scores[b, :n], alone.scores[0, :n], atol=1e-4, rtol=0)


def test_wide_search_with_whole_branches_excluded():
    "A closed branch holds most leaves: nodes that only stand in for beams must not have to stand in for its leaves."
    extended = random_model("llama", [[0, 0, 0], [1, 0, 0], *[[1, 1, k] for k in range(10)]], [2, 2, 10], 0)
    found = beam_search(extended, [[5, 6], [7]], SidTrie(extended.sids), beams=20, exclude=[range(1, 12), [0, *range(2, 12), 5, 5]])
    assert found.items.tolist() == [[0] + [-1] * 19, [1] + [-1] * 19]


def test_a_list_is_empty_if_everything_is_excluded():
    extended = random_model("llama", [[0, 0], [1, 0]], [2, 1], 0)
    found = beam_search(extended, [[5, 6]], SidTrie(extended.sids), beams=3, exclude=[[0, 1]])
    assert found.items.tolist() == [[-1, -1, -1]] and torch.isneginf(found.scores).all()
    assert beam_search(extended, [], SidTrie(extended.sids), beams=3).items.shape == (0, 3)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "bloom"])
def test_prompts_that_begin_alike_rank_the_same(family):
    rng = np.random.default_rng(3)
    codes, sizes = random_catalogue(rng)
    extended = random_model(family, codes, sizes, 3)
    head = rng.integers(3, 300, 7).tolist()
    prompts = [head + rng.integers(3, 300, n).tolist() for n in (2, 5, 5, 1)]
    check_lists(beam_search(extended, prompts, SidTrie(extended.sids), beams=6), extended, extended.merge(), prompts, 6)


def test_a_trie_of_other_levels_and_masks_instead_of_rows_are_refused():
    sids = SemanticIds(torch.tensor([[i // 4, i % 4] for i in range(16)]))
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    initialize(extended, "normal_matched")
    other = SidTrie(SemanticIds(torch.tensor([[i % 3, i % 5] for i in range(15)])))
    with pytest.raises(GTIError, match=r"trie: its levels have \[3, 5\] codes, the model's \[4, 4\]"):
        beam_search(extended, [[1, 2]], other, beams=4)
    for mask in (np.zeros(16, bool), [0.5]):
        with pytest.raises(GTIError, match=r"exclude\[0\]: .*flatnonzero"):
            beam_search(extended, [[1, 2]], SidTrie(sids), beams=4, exclude=[mask])


def test_memory_that_runs_out_names_the_batch_and_lowers_nothing(monkeypatch):
    def full(*args, **kw):
        raise torch.OutOfMemoryError("CUDA out of memory")

    extended = ExtendedModel.extend(*load_base("tiny-llama"), SemanticIds([[0, 1], [1, 0]]))
    monkeypatch.setattr(extended.model.base_model, "forward", full)
    size = r"out of memory \(2 prompts at a time, 10 tokens, the longest 5; logits of {} beams, [\d.]+ MB\); lower batch_size \(now 2\)"
    for search, beams in ((beam_search, 40), (score_all, 2)):
        with pytest.raises(GTIError, match=size.format(beams)):
            search(extended, [[5] * 5, [5] * 3, [5]], SidTrie(extended.sids), batch_size=2)
