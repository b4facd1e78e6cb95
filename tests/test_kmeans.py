"Residual k-means under hostile inputs, and the same codes in every process."
import subprocess, sys
import pytest
import torch
from gti_nb.core import GTIError
from gti_nb.sid.kmeans import RQKMeans

PROGRAM = """
import torch
from gti_nb.sid.kmeans import RQKMeans
x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
print(RQKMeans(3, 16, seed=5).fit(x).content_hash)
"""


def test_same_codes_whatever_the_number_of_threads():
    import os
    hashes = {subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, "OMP_NUM_THREADS": n}, capture_output=True, text=True, check=True).stdout for n in ("1", "2")}
    assert len(hashes) == 1 and len(hashes.pop().strip()) == 16


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n, levels, codes", [(50, 3, 8), (8, 3, 8), (9, 2, 8), (300, 2, 1)])
def test_always_finite_and_reported_truly(seed, n, levels, codes):
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    sids = RQKMeans(levels, codes, seed=seed).fit(x)
    assert all(book.isfinite().all() for book in sids.codebooks)
    energy = ((x - sids.reconstruct()).double().square().sum() / x.double().square().sum()).item()
    assert sids.quality["residual_energy"][-1] == pytest.approx(energy, rel=1e-3, abs=1e-9)
    assert all(a >= b - 1e-9 for a, b in zip(sids.quality["residual_energy"], sids.quality["residual_energy"][1:]))
    assert [k + r for k, r in zip(sids.level_sizes, sids.quality["reduced"])] == [codes] * levels
    assert all(used == size for used, size in zip(sids.report()["used"], sids.level_sizes)), "a dead code"


def test_nearest_centre_at_every_level():
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    sids = RQKMeans(3, 16).fit(x)
    for l in range(3):
        residual = x - (sids.reconstruct(l) if l else 0)
        distance = torch.cdist(residual, sids.codebooks[l])
        assert torch.allclose(distance.gather(1, sids.codes[:, l:l + 1])[:, 0], distance.min(1).values, atol=1e-4)


@pytest.mark.parametrize("distinct, codes", [(2, 8), (5, 8), (8, 8)])
def test_duplicates_reduce_the_level(distinct, codes):
    x = torch.randn(distinct, 4, generator=torch.Generator().manual_seed(1)).repeat(20, 1)
    sids = RQKMeans(2, codes).fit(x)
    assert sids.level_sizes == [distinct, 1] and sids.quality["reduced"] == [codes - distinct, codes - 1]
    assert torch.allclose(sids.reconstruct(), x, atol=1e-5)


def test_tiny_and_huge_scales_give_the_same_codes():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(RQKMeans(2, 8).fit(x).codes, RQKMeans(2, 8).fit(x * 2.0**20).codes)
    assert torch.equal(RQKMeans(2, 8).fit(x).codes, RQKMeans(2, 8).fit(x * 2.0**-20).codes)


@pytest.mark.parametrize("x, message", [
    (torch.full((9, 4), float("nan")), "9 of 9 rows hold NaN"),
    (torch.eye(9).index_fill(0, torch.tensor(2), float("inf")), "the first is row 2"),
    (torch.ones(9, 4), "all 9 rows are equal"),
    (torch.zeros(9, 4), "all 9 rows are equal"),
    (torch.eye(3), "got 8 for 3 items"),
    (torch.ones(1, 4), "got 8 for 1 items"),
    (torch.zeros(0, 4), "got shape"),
    (torch.ones(9), "got shape"),
])
def test_refused(x, message):
    with pytest.raises(GTIError, match=message): RQKMeans(2, 8).fit(x)
