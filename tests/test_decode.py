"""The beam search against `generate(num_beams=W, prefix_allowed_tokens_fn=...)`, list for list, on random models and catalogues."""
import numpy as np
import pytest
import torch
from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie, allowed_codes
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vocab import SidModel

BASES = ["tiny-llama", "tiny-llama-untied", "tiny-qwen3-padded", "tiny-qwen3-untied", "tiny-gpt2", "tiny-gpt2-untied-padded"]


def make_model(base: str, codes, level_sizes: list[int], seed: int) -> SidModel:
    "A random model with a catalogue; rows wide enough apart that no two items tie."
    model, tokenizer = load_base(base)
    sids = SemanticIds(torch.as_tensor(codes), [torch.eye(k) for k in level_sizes])
    sid_model = SidModel.extend(model, tokenizer, sids)
    generator = torch.Generator().manual_seed(seed)
    for p in sid_model.new_parameters(): p.data = torch.randn(p.shape, generator=generator)
    return sid_model


def hf_beams(sid_model: SidModel, prompt: list[int], trie: SidTrie, beams: int) -> tuple[list[tuple], list[float]]:
    "What transformers returns: distinct complete SIDs in order, without its fillers."
    model, levels, n_old = sid_model.merge(), trie.levels, sid_model.n_old
    starts = np.cumsum([0] + trie.level_sizes)
    def allowed(_, ids):
        prefix = tuple(int(t) - n_old - starts[l] for l, t in enumerate(ids[len(prompt):]))
        codes = allowed_codes(trie, prefix) or [0]  # a filler beam: any code, its score is -inf already
        return [int(n_old + starts[len(prefix)] + c) for c in codes]
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), num_beams=beams, num_return_sequences=beams,
                         do_sample=False, max_new_tokens=levels, length_penalty=0.0, early_stopping=True, eos_token_id=None, pad_token_id=0,
                         prefix_allowed_tokens_fn=allowed, output_scores=True, return_dict_in_generate=True)
    known, best = set(map(tuple, trie.leaves.tolist())), {}
    for row, score in zip(out.sequences[:, len(prompt):].tolist(), out.sequences_scores.tolist()):
        sid = tuple(t - n_old - int(starts[l]) for l, t in enumerate(row))
        if sid in known and score > -1e6 and sid not in best: best[sid] = score
    return list(best), list(best.values())


def random_catalogue(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    "Unequal branching, prefixes with one child, collisions now and then."
    levels = int(rng.integers(1, 5))
    sizes, n = [int(k) for k in rng.integers(2, 9, levels)], int(rng.integers(1, 60))
    skewed = rng.random() < 0.5
    columns = [np.minimum(rng.geometric(0.35, n) - 1, k - 1) if skewed else rng.integers(k, size=n) for k in sizes]
    return np.stack(columns, 1), sizes


def compare_with_hf(sid_model: SidModel, prompts: list[list[int]], beams: int) -> None:
    trie = SidTrie(sid_model.sids)
    found = beam_search(sid_model, prompts, trie, beams=beams, batch_size=len(prompts))
    for b, prompt in enumerate(prompts):
        sids, scores = hf_beams(sid_model, prompt, trie, beams)
        n = int((found.items[b] >= 0).sum())
        ours = list(dict.fromkeys(map(tuple, found.codes[b, :n].tolist())))
        assert ours == sids[:len(ours)]
        assert n == min(beams, len(sid_model.sids.codes)) or len(ours) == len(sids)
        by_sid = dict(zip(map(tuple, found.codes[b, :n].tolist()), found.scores[b, :n].tolist()))
        assert max(abs(by_sid[s] - v) for s, v in zip(sids, scores) if s in by_sid) < 1e-3
        items = found.items[b, :n].tolist()
        assert len(set(items)) == n and all(tuple(sid_model.sids.codes[i].tolist()) == tuple(c) for i, c in zip(items, found.codes[b].tolist()))


@pytest.mark.parametrize("draw", range(48))
def test_equals_generate(draw):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    sid_model = make_model(BASES[draw % len(BASES)], codes, sizes, seed=draw)
    prompts = [rng.integers(5, sid_model.n_old + sid_model.n_new, int(rng.integers(1, 30))).tolist() for _ in range(3)]
    compare_with_hf(sid_model, prompts, beams=int(rng.choice([2, 3, 5, 10, 20])))


@pytest.mark.parametrize("codes, sizes, beams", [
    ([[1, 2, 0]], [3, 3, 3], 5),  # one item
    ([[0, 0], [1, 1], [2, 2]], [3, 3], 20),  # single-child nodes, more beams than leaves
    ([[0, k] for k in range(8)] + [[1, 0]], [2, 8], 5),  # more beams than first codes, unequal branching
    ([[0, 0], [0, 0], [0, 0], [1, 1]], [2, 2], 2),  # a collision wider than the list
], ids=["one item", "fewer leaves", "few first codes", "collision"])
@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied"])
def test_edge_catalogues_equal_generate(base, codes, sizes, beams):
    compare_with_hf(make_model(base, codes, sizes, seed=3), [[7, 8, 9], [11] * 20], beams)


def test_batches_do_not_change_results():
    rng = np.random.default_rng(0)
    codes = rng.integers(6, size=(80, 3))
    for base in ("tiny-llama", "tiny-qwen3", "tiny-gpt2"):
        sid_model = make_model(base, codes, [6, 6, 6], seed=1)
        prompts = [rng.integers(5, sid_model.n_old, n).tolist() for n in (3, 40, 1, 17, 17, 90, 8)]
        trie = SidTrie(sid_model.sids)
        alone, together = (beam_search(sid_model, prompts, trie, beams=10, batch_size=n) for n in (1, 7))
        assert torch.equal(alone.items, together.items)
        assert (alone.scores - together.scores).abs().max() < 1e-4


def test_one_beam_is_greedy():
    sid_model = make_model("tiny-llama", np.random.default_rng(5).integers(6, size=(50, 3)), [6, 6, 6], seed=5)
    trie, prompt, greedy = SidTrie(sid_model.sids), [5, 60, 7, 80], ()
    for level in range(3):
        ids = torch.tensor([prompt + [sid_model.n_old + 6 * l + c for l, c in enumerate(greedy)]])
        with torch.no_grad(): logits = sid_model.model(ids).logits[0, -1, sid_model.n_old + 6 * level:]
        greedy += (max(allowed_codes(trie, greedy), key=lambda c: logits[c]),)
    found = beam_search(sid_model, [prompt], trie, beams=1)
    assert tuple(found.codes[0, 0].tolist()) == greedy and found.items.shape == (1, 1)


def test_ties_go_to_the_lower_code():
    codes = np.array([[a, b] for a in range(4) for b in range(4)])[::-1].copy()
    sid_model = make_model("tiny-llama", codes, [4, 4], seed=0)
    sid_model.new_rows.data.zero_()
    found = beam_search(sid_model, [[5, 6, 7]], SidTrie(sid_model.sids), beams=6)
    assert found.codes[0].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]


def test_generation_config_and_training_mode_do_not_matter():
    sid_model = make_model("tiny-gpt2", np.random.default_rng(2).integers(5, size=(30, 3)), [5, 5, 5], seed=2)
    trie, prompts = SidTrie(sid_model.sids), [[9, 8, 7], [6]]
    before = beam_search(sid_model, prompts, trie)
    for key, value in dict(do_sample=True, temperature=3.0, repetition_penalty=5.0, num_beams=4).items(): setattr(sid_model.model.generation_config, key, value)
    sid_model.model.train()
    after = beam_search(sid_model, prompts, trie)
    assert torch.equal(before.items, after.items) and torch.equal(before.scores, after.scores)
    assert sid_model.model.training


def test_every_prompt_is_read_once():
    sid_model = make_model("tiny-llama", np.random.default_rng(3).integers(4, size=(30, 3)), [4, 4, 4], seed=3)
    fed = []
    hook = sid_model.model.get_input_embeddings().register_forward_hook(lambda m, args, out: fed.append(tuple(args[0].shape)))
    beam_search(sid_model, [[5] * 12, [6] * 12], SidTrie(sid_model.sids), beams=10)
    hook.remove()
    assert fed == [(2, 12), (2, 4), (2, 10)]  # the prompts, then one position per beam: never W copies


def test_bf16_scores_are_fp32_and_near():
    sid_model = make_model("tiny-qwen3", np.random.default_rng(4).integers(8, size=(40, 2)), [8, 8], seed=4)
    trie, prompts = SidTrie(sid_model.sids), [[5, 6, 7, 8], [9, 10]]
    full, half = (beam_search(sid_model, prompts, trie, beams=40, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert half.scores.dtype == torch.float32
    for b in range(2):
        a, c = (dict(zip(f.items[b].tolist(), f.scores[b].tolist())) for f in (full, half))
        assert max(abs(a[i] - c[i]) for i in a) < 0.3


def test_diverged_model_is_refused():
    sid_model = make_model("tiny-llama", [[0, 0], [1, 1]], [2, 2], seed=0)
    sid_model.new_rows.data.fill_(float("nan"))
    with pytest.raises(GTIError, match="NaN or Inf"): beam_search(sid_model, [[5, 6]], SidTrie(sid_model.sids))


def test_kernel_without_a_free_mask_is_refused():
    sid_model = make_model("tiny-llama", [[0, 0], [1, 1]], [2, 2], seed=0)
    sid_model.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(GTIError, match="attn_implementation: got 'flash_attention_2'"): beam_search(sid_model, [[5, 6]], SidTrie(sid_model.sids))


def test_attention_window_is_respected_or_refused():
    sid_model = make_model("tiny-qwen3", [[0, 0], [1, 1]], [2, 2], seed=0)
    sid_model.model.config.layer_types, sid_model.model.config.sliding_window = ["sliding_attention"] * 2, 8
    with pytest.raises(GTIError, match="attention window is 8"): beam_search(sid_model, [[5] * 20], SidTrie(sid_model.sids))


@pytest.mark.parametrize("seed", range(8))
def test_excluding_items_is_searching_the_catalogue_without_them(seed):
    rng = np.random.default_rng(seed)
    codes, sizes = random_catalogue(rng)
    sid_model = make_model(BASES[seed % len(BASES)], codes, sizes, seed)
    prompts = [rng.integers(3, 300, int(n)).tolist() for n in rng.integers(1, 9, 3)]
    exclude = [rng.choice(len(codes), int(rng.integers(0, len(codes))), replace=False) for _ in prompts]
    found = beam_search(sid_model, prompts, SidTrie(sid_model.sids), beams=5, exclude=exclude)
    for b, (prompt, gone) in enumerate(zip(prompts, exclude)):
        left = np.setdiff1d(np.arange(len(codes)), gone)
        alone = beam_search(sid_model, [prompt], SidTrie(SemanticIds(sid_model.sids.codes[left], sid_model.sids.codebooks)), beams=5)
        n = int((alone.items[0] >= 0).sum())
        assert found.items[b].tolist() == [*left[alone.items[0, :n].numpy()].tolist(), *[-1] * (5 - n)]
        torch.testing.assert_close(found.scores[b, :n], alone.scores[0, :n], atol=1e-4, rtol=0)


def test_nothing_left_to_return():
    sid_model = make_model("tiny-llama", [[0, 0], [1, 0]], [2, 1], 0)
    found = beam_search(sid_model, [[5, 6]], SidTrie(sid_model.sids), beams=3, exclude=[[0, 1]])
    assert found.items.tolist() == [[-1, -1, -1]] and torch.isneginf(found.scores).all()


@pytest.mark.parametrize("base", BASES)
def test_prompts_that_begin_alike_are_read_once_and_rank_the_same(base):
    rng = np.random.default_rng(3)
    codes, sizes = random_catalogue(rng)
    sid_model = make_model(base, codes, sizes, 3)
    head = rng.integers(3, 300, 7).tolist()
    compare_with_hf(sid_model, [head + rng.integers(3, 300, n).tolist() for n in (2, 5, 5, 1)], beams=6)
