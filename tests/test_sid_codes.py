"Semantic IDs on disk and against slow reference computations."
import itertools
import numpy as np
import pytest
import torch
from gti_nb.core import GTIError
from gti_nb.sid.codes import SemanticIds


def random_sids(seed: int, n: int = 60, sizes=(4, 3, 2), d: int = 5) -> tuple[SemanticIds, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(k, (n,), generator=g) for k in sizes], 1)
    sids = SemanticIds(codes, [torch.randn(k, d, generator=g) for k in sizes])
    return sids, sids.reconstruct() + .1 * torch.randn(n, d, generator=g)


@pytest.mark.parametrize("seed", range(5))
def test_extra_level_counts_through_every_group_in_row_order(seed):
    sids, _ = random_sids(seed)
    resolved, seen = sids.resolve("extra_level"), {}
    for i in range(sids.n_items):
        word = tuple(sids.codes[i].tolist())
        assert resolved.codes[i].tolist() == [*word, seen.get(word, 0)]
        seen[word] = seen.get(word, 0) + 1
    assert resolved.level_sizes == [4, 3, 2, max(seen.values())]
    assert resolved.policy == "extra_level" and resolved.summary()["distinct"] == sids.n_items


@pytest.mark.parametrize("seed", range(5))
def test_hungarian_is_the_best_assignment_by_brute_force(seed):
    g = torch.Generator().manual_seed(seed)
    books = [torch.randn(2, 3, generator=g), torch.randn(4, 3, generator=g)]
    vectors = torch.randn(7, 3, generator=g)
    first = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    nearest = torch.cdist(vectors - books[0][first], books[1]).argmin(1)
    nearest[1] = nearest[0]  # at least one collision under prefix 0
    sids = SemanticIds(torch.stack([first, nearest], 1), books)
    resolved = sids.resolve("hungarian", vectors)
    assert resolved.summary()["distinct"] == 7 and torch.equal(resolved.codes[:, 0], first)
    for prefix in (0, 1):
        items = sids.items_of((prefix,))
        if len(set(nearest[items].tolist())) == len(items): assert torch.equal(resolved.codes[items], sids.codes[items]); continue
        cost = torch.cdist(vectors[items] - books[0][prefix], books[1]).square()
        best = min(sum(cost[i, k].item() for i, k in enumerate(ks)) for ks in itertools.permutations(range(4), len(items)))
        assert cost[range(len(items)), resolved.codes[items, 1]].sum().item() == pytest.approx(best, rel=1e-5)
    assert resolved.quality["residual_energy"] == pytest.approx(resolved.residual_energy(vectors))


@pytest.mark.parametrize("seed", range(3))
def test_report_against_loops(seed):
    sids, vectors = random_sids(seed)
    words = [tuple(c) for c in sids.codes.tolist()]
    report, summary = sids.report(), sids.summary()
    for l, letter in enumerate("abc"):
        prefixes = [w[:l + 1] for w in words]
        assert report.loc[letter, "distinct"] == len(set(prefixes))
        assert report.loc[letter, "largest"] == max(prefixes.count(p) for p in prefixes)
        assert report.loc[letter, "used"] == len({w[l] for w in words})
    assert summary["collision_excess"] == pytest.approx(1 - len(set(words)) / len(words))
    assert summary["collision_share"] == pytest.approx(np.mean([words.count(w) > 1 for w in words]))
    left = ((vectors - sum(b[c] for b, c in zip(sids.codebooks, sids.codes.T))).square().sum() / vectors.square().sum()).item()
    assert sids.residual_energy(vectors)[-1] == pytest.approx(left, rel=1e-4)


def test_one_item():
    sids = SemanticIds([[0, 0]]).resolve("extra_level")
    assert sids.tokens(0) == ["<a_0>", "<b_0>"] and sids.report().perplexity.tolist() == [1, 1]


@pytest.mark.parametrize("policy", ["none", "extra_level", "hungarian"])
def test_save_and_load(tmp_path, policy):
    sids, vectors = random_sids(0, n=20, sizes=(4, 8, 8))
    resolved = sids.resolve(policy, vectors)
    resolved.quality["residual_energy"] = [*resolved.residual_energy(vectors)]
    again = SemanticIds.load(resolved.save(tmp_path / "sids"))
    assert again.content_hash == resolved.content_hash and again.policy == policy
    assert np.allclose(again.quality["residual_energy"], resolved.quality["residual_energy"], equal_nan=True)
    assert again.token_names == resolved.token_names


def flip_last_byte(path):
    data = bytearray(path.read_bytes()); data[-1] ^= 1; path.write_bytes(data)


@pytest.mark.parametrize("damage, message", [
    (lambda d: (d / "sids.safetensors").write_bytes((d / "sids.safetensors").read_bytes()[:50]), "cannot be read"),
    (lambda d: flip_last_byte(d / "sids.safetensors"), "do not belong together|NaN|codes from"),
    (lambda d: (d / "sids.safetensors").unlink(), "cannot be read"),
    (lambda d: (d / "sids.json").unlink(), "sids.json"),
    (lambda d: (d / "sids.json").write_text((d / "sids.json").read_text().replace('"schema": 1', '"schema": 9')), "schema 9, this version reads 1"),
])
def test_damaged_files_are_refused(tmp_path, damage, message):
    sids, _ = random_sids(0)
    sids.save(tmp_path); damage(tmp_path)
    with pytest.raises(GTIError, match=message): SemanticIds.load(tmp_path)
