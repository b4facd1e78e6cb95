"""`generate` with the logits processor: the lists of `prefix_allowed_tokens_fn`, and only items when sampling."""

import numpy as np
import pytest
import torch
from decode.decoding import generated, random_catalogue, random_model

from gti_nb.decode.processor import SidLogitsProcessor
from gti_nb.decode.trie import SidTrie


def written(extended, prompts: list[list[int]], **options) -> tuple[torch.Tensor, torch.Tensor | None]:
    "Codes [n, L] and scores after left-padded prompts."
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    processor = SidLogitsProcessor(extended, SidTrie(extended.sids), width)
    out = extended.model.generate(
        ids,
        attention_mask=real,
        logits_processor=[processor],
        max_new_tokens=extended.sids.levels,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences[:, width:] - processor.starts, getattr(out, "sequences_scores", None)


@pytest.mark.parametrize("draw", range(24))
def test_beams_equal_the_prefix_function(draw):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    extended = random_model(["llama", "gpt2", "qwen2", "gemma2"][draw % 4], codes, sizes, draw)
    prompts, beams = [rng.integers(5, 300, int(n)).tolist() for n in (4, 9)], int(rng.choice([2, 5, 20]))
    found, scores = written(
        extended, prompts, num_beams=beams, num_return_sequences=beams, do_sample=False, length_penalty=0.0, early_stopping=True
    )
    plain = extended.merge()
    known = set(map(tuple, codes.tolist()))
    for b, prompt in enumerate(prompts):
        mine = {}
        part = slice(b * beams, (b + 1) * beams)
        for sid, score in zip(map(tuple, found[part].tolist()), scores[part].tolist(), strict=True):
            if score > -1e6 and sid in known:
                mine.setdefault(sid, score)
        best = generated(plain, extended, prompt, beams)
        assert list(mine) == list(best)
        assert max(abs(mine[sid] - best[sid]) for sid in best) < 2e-4


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma3"])
def test_samples_are_items_drawn_with_their_probability(family):
    extended = random_model(family, [[0, 0], [0, 1], [1, 1], [2, 0]], [3, 2], 0)
    extended.new_rows.data.mul_(0.1)
    torch.manual_seed(0)
    found, _ = written(extended, [[5, 6, 7]], do_sample=True, top_k=0, num_return_sequences=400)
    counts = [(found == torch.tensor(sid)).all(1).float().mean().item() for sid in ([0, 0], [0, 1], [1, 1], [2, 0])]
    assert sum(counts) == pytest.approx(1)
    logits = extended.model(torch.tensor([[5, 6, 7]])).logits[0, -1, extended.n_pretrained : extended.n_pretrained + 3].softmax(0).tolist()
    assert [counts[0] + counts[1], counts[2], counts[3]] == pytest.approx(logits, abs=0.1)


def test_a_row_outside_the_catalogue_cannot_continue():
    extended = random_model("llama", [[0, 0], [1, 1]], [2, 2], 0)
    processor = SidLogitsProcessor(extended, SidTrie(extended.sids), 1)
    n = extended.n_pretrained
    rows = torch.tensor([[7, n, 0], [7, n + 1, 0], [7, 9, 0], [7, n + 2, 0]])[:, :2]
    allowed = torch.isfinite(processor(rows, torch.zeros(4, n + 4)))
    assert [a.nonzero().flatten().tolist() for a in allowed] == [[n + 2], [n + 3], [], []]
