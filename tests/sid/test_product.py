"Product quantization: one space for all codes, order, and hostile inputs."

from itertools import pairwise

import pytest
import torch

from gti_nb.core import GTIError
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.product import ProductQuantizer


def vectors(n: int = 400, d: int = 13, seed: int = 0) -> torch.Tensor:
    "Correlated vectors away from the origin."
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=rng) @ torch.randn(d, d, generator=rng) + 2


@pytest.mark.parametrize("rotations", [0, 1, 10])
@pytest.mark.parametrize("levels, codes, options", [(1, 8, {}), (3, 8, {}), (4, 16, {}), (13, 2, {}), (3, 8, {"sample": 6})])
def test_the_contract_of_all_quantizers(rotations, levels, codes, options):
    x = vectors()
    sids = ProductQuantizer(levels, codes, rotations=rotations, **options).fit(x)
    assert sids.policy == "none" and sids.level_sizes == [codes] * levels
    assert torch.equal(sids.assign(x), sids.codes)
    assert sids.quality["residual_energy"] == pytest.approx(sids.residual_energy(x), rel=1e-3)
    assert all(a > b for a, b in pairwise(sids.quality["residual_energy"]))


def test_pieces_are_at_right_angles_and_of_equal_rank():
    x = vectors()
    books = [book - book.mean(0) for book in ProductQuantizer(3, 16).fit(x).codebooks]
    assert [int(torch.linalg.matrix_rank(book, rtol=1e-3)) for book in books] == [5, 4, 4]
    for i in range(3):
        for j in range(i):
            assert (books[i] @ books[j].T).abs().max() < 1e-4 * books[0].square().sum(1).max()


def test_codes_of_different_pieces_may_come_in_any_order():
    x = vectors()
    sids = ProductQuantizer(3, 8).fit(x)
    assert torch.equal(SemanticIds(sids.codes.flip(1), sids.codebooks[::-1]).assign(x), sids.codes.flip(1))


def test_rotation_pays():
    x = vectors()
    plain, rotated, longer = (ProductQuantizer(3, 16, rotations=r).fit(x).quality["residual_energy"][-1] for r in (0, 10, 40))
    assert rotated < 0.9 * plain and longer < 1.02 * rotated


@pytest.mark.parametrize("rotations", [0, 5])
def test_order_seed_and_equal_items(rotations):
    x = vectors()
    x[300:] = x[:100]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(7))

    def fit(x, seed=0):
        return ProductQuantizer(3, 8, seed, rotations=rotations).fit(x)

    assert torch.equal(fit(x[order]).codes, fit(x).codes[order]) and torch.equal(fit(x).codes[300:], fit(x).codes[:100])
    assert not torch.equal(fit(x, seed=1).codes, fit(x).codes)


def test_a_piece_without_variance_has_one_code():
    x = torch.cat([vectors(100, 4), torch.ones(100, 4)], 1)
    sids = ProductQuantizer(2, 8, rotations=0).fit(x)
    assert sids.level_sizes == [8, 1] and sids.quality["reduced"] == [0, 7]


def test_duplicates_reduce():
    sids = ProductQuantizer(2, 8, rotations=2).fit(vectors(3, 4).repeat(10, 1))
    assert (
        max(sids.level_sizes) <= 3 and all(book.isfinite().all() for book in sids.codebooks) and sids.quality["residual_energy"][-1] < 1e-6
    )


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.full((9, 4), float("nan")), "9 of 9 rows hold NaN"),
        (torch.ones(9, 4), "all 9 rows are equal"),
        (torch.eye(3), "got 8 for 3 items"),
        (torch.randn(9, 1), "got 2 for vectors of 1 numbers"),
        (torch.ones(9), "got shape"),
    ],
)
def test_refused(x, message):
    with pytest.raises(GTIError, match=message):
        ProductQuantizer(2, 8).fit(x)
