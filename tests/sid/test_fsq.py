"Residual finite scalar quantization: grids, order, and hostile inputs."

import math
from itertools import pairwise

import pytest
import torch

from gti_nb.core import GTIError
from gti_nb.sid.fsq import ResidualFSQ, best_spacing, prime_factors


def vectors(n: int = 400, d: int = 12, seed: int = 0) -> torch.Tensor:
    "Correlated vectors away from the origin."
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=rng) + 2


@pytest.mark.parametrize(
    "levels, codes, marks",
    [(1, 8, None), (3, 64, None), (3, 64, (8, 8)), (4, 60, (5, 4, 3)), (2, 7, None), (2, 1, None), (3, 12, (1, 12)), (2, 4096, None)],
)
def test_the_contract_of_all_quantizers(levels, codes, marks):
    x = vectors()
    sids = ResidualFSQ(levels, codes, marks).fit(x)
    assert sids.policy == "none" and sids.level_sizes == [codes] * levels
    assert torch.equal(sids.assign(x), sids.codes)
    assert sids.quality["residual_energy"] == pytest.approx(sids.residual_energy(x), rel=1e-3)
    assert all(a > b or codes == 1 for a, b in pairwise(sids.quality["residual_energy"]))


def test_a_codebook_is_a_grid():
    book = ResidualFSQ(1, 60, (5, 4, 3)).fit(vectors()).codebooks[0].view(5, 4, 3, 12)
    for axis in range(3):
        steps = book.diff(dim=axis).reshape(-1, 12)
        assert torch.allclose(steps, steps[:1].expand_as(steps), atol=1e-4)
    across = [book.diff(dim=axis).reshape(-1, 12)[0] for axis in range(3)]
    assert all(abs(across[i] @ across[j]) < 1e-3 for i in range(3) for j in range(i))


@pytest.mark.parametrize("marks, best", [(2, 1.596), (3, 1.224), (4, 0.9957), (5, 0.843), (8, 0.586)])
def test_spacing_of_a_gaussian(marks, best):  # Max 1960, table II
    assert best_spacing(torch.randn(20000, generator=torch.Generator().manual_seed(0)), marks) == pytest.approx(best, rel=0.06)


@pytest.mark.parametrize("number", [1, 2, 7, 64, 60, 97, 1000, 8192])
def test_prime_factors(number):
    factors = prime_factors(number)
    assert math.prod(factors) == number and list(factors) == sorted(factors, reverse=True)


def test_order_and_equal_items():
    x = vectors()
    x[300:] = x[:100]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(7))
    assert torch.equal(ResidualFSQ(3, 16).fit(x[order]).codes, ResidualFSQ(3, 16).fit(x).codes[order])
    assert torch.equal(ResidualFSQ(3, 16).fit(x).codes[300:], ResidualFSQ(3, 16).fit(x).codes[:100])


def test_flat_axes_and_few_items():
    x = torch.cat([vectors(50, 1), torch.ones(50, 5)], 1)
    sids = ResidualFSQ(2, 8).fit(x)
    assert sids.level_sizes == [2, 2] and sids.quality["reduced"] == [6, 6]
    few = ResidualFSQ(2, 256).fit(vectors(3))
    assert len(few.codes.unique(dim=0)) == 3 and all(book.isfinite().all() for book in few.codebooks)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ResidualFSQ(2, 64, (8, 9)), "whole numbers whose product is codes, 64"),
        (lambda: ResidualFSQ(2, 64, (64.0, 1)), "marks: got .*each entry a whole number"),
        (lambda: ResidualFSQ(2, 64, (-8, -8)), "whole numbers"),
        (lambda: ResidualFSQ(0), "levels: got 0"),
        (lambda: ResidualFSQ(2, 64).fit(vectors(9, 2)), "for vectors of 2 numbers"),
        (lambda: ResidualFSQ(2, 8).fit(torch.ones(9, 4)), "all 9 rows are equal"),
        (lambda: ResidualFSQ(2, 8).fit(torch.full((9, 4), float("nan"))), "9 of 9 rows hold NaN"),
        (lambda: ResidualFSQ(2, 8).fit(torch.ones(9)), "got shape"),
    ],
)
def test_refused(make, message):
    with pytest.raises(GTIError, match=message):
        make()
