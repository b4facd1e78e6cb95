"""The tree of a catalogue against plain Python, and a million items."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decode.decoding import random_catalogue, random_model

from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie, allowed_codes, children, closed_nodes, find_nodes, is_closed


def trie_of(codes, sizes) -> SidTrie:
    return SidTrie(SimpleNamespace(codes=torch.as_tensor(codes), level_sizes=sizes, offsets=np.cumsum([0, *sizes[:-1]]).tolist()))


@pytest.mark.parametrize("draw", range(30))
def test_tables_equal_a_dictionary_of_prefixes(draw):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    trie, sids = trie_of(codes, sizes), sorted(set(map(tuple, codes.tolist())))
    assert list(map(tuple, trie.leaves.tolist())) == sids
    assert [sids[leaf] for leaf in trie.leaf_of] == list(map(tuple, codes.tolist()))
    for level in range(len(sizes)):
        prefixes = sorted({s[:level] for s in sids})
        below = [sorted({s[level] for s in sids if s[:level] == p}) for p in prefixes]
        assert [allowed_codes(trie, p) for p in prefixes] == below
        child, exists = children(trie, level, torch.arange(len(prefixes)))
        assert [trie.codes[level][c[e]].tolist() for c, e in zip(child, exists, strict=True)] == below
    probes = torch.as_tensor(rng.integers(-1, max(sizes) + 1, size=(50, len(sizes))))
    assert find_nodes(trie, probes).tolist() == [sids.index(tuple(p)) if tuple(p) in sids else -1 for p in probes.tolist()]


@pytest.mark.parametrize("draw", range(20))
def test_closed_nodes_are_those_without_an_item_left(draw):
    rng = np.random.default_rng(draw)
    codes, sizes = random_catalogue(rng)
    trie = trie_of(codes, sizes)
    excluded = [torch.as_tensor(rng.integers(len(codes), size=int(rng.integers(0, 2 * len(codes))))) for _ in range(4)]
    for level, closed in enumerate(closed_nodes(trie, excluded)):
        prefixes = sorted({tuple(w[: level + 1]) for w in codes.tolist()})
        found = is_closed(closed, len(prefixes), torch.arange(len(prefixes)).expand(4, -1))
        for row, gone in zip(found.tolist(), excluded, strict=True):
            left = {tuple(w[: level + 1]) for w in np.delete(codes, gone.unique().numpy(), 0).tolist()}
            assert row == [p not in left for p in prefixes]


def test_a_million_items():
    "Small tables, exclusions that touch only what they exclude, and a search that runs."
    codes = torch.randint(256, (1_000_000, 4), generator=torch.Generator().manual_seed(0))
    extended = random_model("llama", codes, [256] * 4, 0)
    trie = SidTrie(extended.sids)
    assert len(trie.leaves) == len(torch.unique(codes @ (256 ** torch.arange(3, -1, -1)))) and trie.nbytes < 45e6
    first = beam_search(extended, [[5, 6, 7], [8] * 9], trie, beams=50)
    gone = [first.items[0, :20], torch.arange(1000)]
    assert all(len(level) <= 1020 for level in closed_nodes(trie, gone))
    second = beam_search(extended, [[5, 6, 7], [8] * 9], trie, beams=50, exclude=gone)
    left = torch.ones(1_000_000, dtype=torch.bool).index_fill(0, gone[0], False).nonzero()[:, 0]
    without = beam_search(extended, [[5, 6, 7]], trie_of(codes[left], [256] * 4), beams=50)
    assert torch.equal(second.items[0], left[without.items[0]])
    for found in (first, second):
        assert (found.items >= 0).all() and torch.equal(codes[found.items], found.codes) and (found.scores.diff() <= 0).all()
