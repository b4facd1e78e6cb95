"Semantic IDs on disk, against slow reference computations, and on vectors in a file."

import numpy as np
import pytest
import torch

from gti_nb.core import GTIError
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vectors import sid_groups


def random_codes(seed: int, n: int = 60, sizes=(4, 3, 2), d: int = 5) -> tuple[SemanticIds, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(k, (n,), generator=g) for k in sizes], 1)
    sids = SemanticIds(codes, [torch.randn(k, d, generator=g) for k in sizes])
    return sids, sids.reconstruct() + 0.1 * torch.randn(n, d, generator=g)


class Walked:
    "Vectors that record the largest number of rows taken at once."

    def __init__(self, x: np.ndarray):
        self.x, self.shape, self.ndim, self.most = x, x.shape, x.ndim, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, rows):
        part = self.x[rows]
        self.most = max(self.most, len(part))
        return part


@pytest.mark.parametrize("seed", range(3))
def test_report_against_loops(seed):
    sids, vectors = random_codes(seed)
    ids = [tuple(c) for c in sids.codes.tolist()]
    report, summary = sids.report(), sids.summary()
    for level, letter in enumerate("abc"):
        prefixes = [w[: level + 1] for w in ids]
        assert report.loc[letter, "distinct"] == len(set(prefixes))
        assert report.loc[letter, "largest"] == max(prefixes.count(p) for p in prefixes)
        assert report.loc[letter, "used"] == len({w[level] for w in ids})
    assert summary["collision_excess"] == pytest.approx(1 - len(set(ids)) / len(ids))
    assert summary["collision_share"] == pytest.approx(np.mean([ids.count(w) > 1 for w in ids]))
    left = ((vectors - sum(b[c] for b, c in zip(sids.codebooks, sids.codes.T, strict=True))).square().sum() / vectors.square().sum()).item()
    assert sids.residual_energy(vectors)[-1] == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_numbered_in_the_order_of_their_codes(seed):
    codes = torch.randint(5, (40, 3), generator=torch.Generator().manual_seed(seed))
    ids = [tuple(c) for c in codes.tolist()]
    groups, sizes = sid_groups(codes)
    assert groups.tolist() == [sorted(set(ids)).index(w) for w in ids]
    assert sizes.tolist() == [ids.count(w) for w in sorted(set(ids))]


def test_one_item():
    sids = SemanticIds([[0, 0]]).resolve("extra_level")
    assert sids.tokens(0) == ["<a_0>", "<b_0>"] and sids.report().perplexity.tolist() == [1, 1]


# Codes for vectors


@pytest.mark.parametrize("seed", range(3))
def test_assign_is_greedy_residual_nearest(seed):
    sids, vectors = random_codes(seed)
    for x, found in zip(vectors, sids.assign(vectors).tolist(), strict=True):
        left = x.double()
        for book, code in zip(sids.codebooks, found, strict=True):
            assert code == (left - book).square().sum(1).argmin()
            left = left - book[code]


@pytest.mark.parametrize("chunk", [1, 7, 60, 10_000])
def test_assign_does_not_depend_on_the_slices(chunk):
    sids, vectors = random_codes(0)
    assert torch.equal(sids.assign(vectors, chunk=chunk), sids.assign(vectors))
    assert torch.equal(sids.assign(vectors, levels=2), sids.assign(vectors)[:, :2])


def test_vectors_in_a_file_are_read_in_slices(tmp_path):
    sids, vectors = random_codes(0, n=40_000)
    np.save(tmp_path / "x.npy", vectors.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert torch.equal(sids.assign(mapped), sids.assign(vectors)) and sids.residual_energy(mapped) == sids.residual_energy(vectors)
    for call in (sids.assign, sids.residual_energy):
        walked = Walked(vectors.numpy())
        call(walked)
        assert 0 < walked.most <= 16_384


def test_no_vectors_give_no_codes():
    sids, vectors = random_codes(0)
    assert sids.assign(vectors[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s, x: s.assign(x[:, :4]), r"got shape \(60, 4\), expected \[n, 5\]"),
        (lambda s, x: s.assign(x[0]), r"got shape \(5,\), expected \[n, 5\]"),
        (lambda s, x: s.assign(torch.where(torch.arange(60)[:, None] == 17, torch.nan, x)), "row 17 holds NaN"),
        (lambda s, x: s.assign(x, levels=4), "levels: got 4, allowed: a whole number from 1 to 3"),
        (lambda s, x: s.resolve("extra_level").assign(x), "level d has no vectors.*use levels=3, or `add_items`"),
        (lambda s, x: s.residual_energy(x[:10]), "got 10 rows for 60 items"),
        (lambda s, x: SemanticIds(s.codes).assign(x), "level a has no vectors.*fit a quantizer"),
        (lambda s, x: SemanticIds(s.codes, [torch.eye(4), torch.eye(3), torch.eye(2)]).reconstruct(), "all levels must use one space"),
        (lambda s, x: SemanticIds(s.codes.float()), "expected whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(GTIError, match=message):
        call(*random_codes(0))


# On disk


@pytest.mark.parametrize("policy", ["none", "extra_level", "sinkhorn", "hungarian"])
def test_save_and_load(tmp_path, policy):
    sids, vectors = random_codes(0, n=20, sizes=(4, 8, 8))
    resolved = sids.resolve(policy, vectors)
    resolved.quality["residual_energy"] = [*resolved.residual_energy(vectors)]
    again = SemanticIds.load(resolved.save(tmp_path / "sids"))
    assert again.content_hash == resolved.content_hash and again.policy == policy
    assert again.quality.keys() == resolved.quality.keys() and repr(again) == repr(resolved)
    assert np.allclose(again.quality["residual_energy"], resolved.quality["residual_energy"], equal_nan=True)
    assert again.token_names == resolved.token_names


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: (d / "sids.safetensors").write_bytes((d / "sids.safetensors").read_bytes()[:50]), "cannot be read"),
        (lambda d: flip_last_byte(d / "sids.safetensors"), "do not belong together|NaN|codes from"),
        (lambda d: (d / "sids.safetensors").unlink(), "cannot be read"),
        (lambda d: (d / "sids.json").unlink(), "sids.json"),
        (
            lambda d: (d / "sids.json").write_text((d / "sids.json").read_text().replace('"schema": 1', '"schema": 9')),
            "schema 9, this version reads 1",
        ),
        (
            lambda d: (d / "sids.json").write_text((d / "sids.json").read_text().replace("<a_0>", "<a_9>")),
            "sids.json: its content is not what was written",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage, message):
    sids, _ = random_codes(0)
    sids.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(GTIError, match=message):
        SemanticIds.load(tmp_path)
