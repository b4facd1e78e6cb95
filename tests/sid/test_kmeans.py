"Residual k-means: quality, order, balance, size and hostile inputs."

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from gti_nb.core import GTIError
from gti_nb.sid import clustering
from gti_nb.sid.balance import even_out, exchange_rows, optimal_assignment
from gti_nb.sid.encoding import encode_rows
from gti_nb.sid.kmeans import RQKMeans
from gti_nb.sid.ordering import OrderedRows

PROGRAM = """
import torch
from gti_nb.sid.kmeans import RQKMeans
x = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
print(RQKMeans(3, 16, seed=5).fit(x).content_hash)
"""


def gaussian(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def topical(n: int, d: int, topics: int, seed: int = 0) -> torch.Tensor:
    "Unit vectors around topics, as texts have them."
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(topics, d, generator=rng)[torch.randint(topics, (n,), generator=rng)] + torch.randn(n, d, generator=rng)
    return x / x.norm(dim=1, keepdim=True)


def error(sids, x: torch.Tensor) -> float:
    return (x.double() - sids.reconstruct()).square().sum().item()


def test_same_codes_whatever_the_number_of_threads():
    hashes = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, "OMP_NUM_THREADS": n}, capture_output=True, text=True, check=True
        ).stdout
        for n in ("1", "2")
    }
    assert len(hashes) == 1 and len(hashes.pop().strip()) == 16


@pytest.mark.parametrize("n, d, levels, codes, starts", [(600, 48, 2, 64, 4), (600, 48, 3, 128, 4), (900, 32, 4, 16, 1)])
def test_less_error_than_lloyd(n, d, levels, codes, starts):
    x = topical(n, d, n // 6)
    ours = np.mean([error(RQKMeans(levels, codes, seed).fit(x), x) for seed in range(3)])
    theirs = []
    for seed in range(3):
        left = x.numpy()
        for level in range(levels):
            fitted = KMeans(codes, n_init=starts, random_state=seed + level).fit(left)
            left = left - fitted.cluster_centers_[fitted.labels_]
        theirs.append(float(np.square(left).sum()))
    assert ours < np.mean(theirs)


@pytest.mark.parametrize("levels, codes", [(3, 8), (8, 4), (4, 64)])
def test_refitting_together_pays(levels, codes):
    x = topical(500, 24, 40)
    alone, once, often = (error(RQKMeans(levels, codes, sweeps=s).fit(x), x) for s in (0, 1, 4))
    assert once < alone and often < once * 1.01


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("n, levels, codes", [(50, 3, 8), (8, 3, 8), (9, 2, 8), (300, 2, 1)])
def test_always_finite_and_reported_truly(seed, balanced, n, levels, codes):
    x = gaussian(n, 6, seed)
    sids = RQKMeans(levels, codes, seed=seed, balanced=balanced).fit(x)
    assert all(book.isfinite().all() for book in sids.codebooks)
    assert sids.quality["residual_energy"] == pytest.approx(sids.residual_energy(x), rel=1e-3, abs=1e-9)
    assert [k + r for k, r in zip(sids.level_sizes, sids.quality["reduced"], strict=True)] == [codes] * levels
    assert all(used == size for used, size in zip(sids.report()["used"], sids.level_sizes, strict=True)), "a dead code"


@pytest.mark.parametrize("sweeps", [0, 1, 3])
def test_codes_are_the_greedy_ones(sweeps):
    x = topical(400, 12, 30)
    sids = RQKMeans(3, 16, sweeps=sweeps).fit(x)
    assert torch.equal(sids.assign(x), sids.codes)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"balanced": True}, {"sample": 3}, {"sample": 3, "balanced": True}, {"sweeps": 0}])
def test_order_of_items_does_not_matter(seed, options):
    x = topical(330, 10, 20, seed)
    if not options.get("balanced"):
        x[200:260] = x[:60]  # equal items; balanced codes may separate them
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + 100))
    straight, shuffled = RQKMeans(2, 12, seed, **options).fit(x), RQKMeans(2, 12, seed, **options).fit(x[order])
    assert torch.equal(straight.codes[order], shuffled.codes)
    assert all(torch.equal(a, b) for a, b in zip(straight.codebooks, shuffled.codebooks, strict=True))


def test_seed_and_equal_items():
    x = topical(300, 10, 20)
    x[200:] = x[:100]
    one, same, other = (RQKMeans(2, 16, seed).fit(x) for seed in (1, 1, 2))
    assert torch.equal(one.codes, same.codes) and not torch.equal(one.codes, other.codes)
    assert torch.equal(one.codes[200:], one.codes[:100])


@pytest.mark.parametrize(
    "n, codes, levels, options",
    [
        (100, 7, 3, {}),
        (1200, 32, 2, {}),
        (1203, 32, 2, {}),
        (64, 64, 1, {}),
        (5, 4, 2, {}),
        (700, 8, 2, {"sample": 10}),
        (1500, 16, 2, {"sample": 5}),
    ],
)
def test_balanced_codes_have_equal_sizes(n, codes, levels, options):
    x = topical(n, 16, 9)
    sids = RQKMeans(levels, codes, balanced=True, **options).fit(x)
    for level, size in zip(sids.codes.T, sids.level_sizes, strict=True):
        counts = torch.bincount(level, minlength=size)
        assert counts.min() >= n // size and counts.max() <= -(-n // size)
    assert error(sids, x) < x.square().sum() * (0.9 if n > codes else 1e-6)


@pytest.mark.parametrize("k, n", [(3, 20), (8, 64), (8, 67), (40, 130), (5, 3)])
def test_exchanges_come_close_to_the_best_assignment(k, n):
    rng = torch.Generator().manual_seed(n)
    distances = (torch.randn(k, 1, 4, generator=rng) - torch.randn(1, n, 4, generator=rng)).square().sum(2)

    def cost(labels):
        return distances.gather(0, labels[None]).sum().item()

    even = even_out(distances, distances.argmin(0))
    better = exchange_rows(distances, even.clone())
    best = optimal_assignment(distances)
    for labels in (even, better, best):
        counts = torch.bincount(labels, minlength=k)
        assert counts.min() >= n // k and counts.max() <= -(-n // k)
    assert cost(best) - 1e-3 <= cost(better) <= cost(even) + 1e-3 and cost(better) <= 1.05 * cost(best)


def test_in_blocks_as_in_one(monkeypatch):
    x = topical(500, 16, 40)
    whole = RQKMeans(2, 16).fit(x)
    monkeypatch.setattr(clustering, "BLOCK_DISTANCES", 16 * 16 * 3)  # 48 rows at a time
    blocks = RQKMeans(2, 16).fit(x)
    assert torch.equal(blocks.assign(x), blocks.codes)
    assert error(blocks, x) == pytest.approx(error(whole, x), rel=0.03)
    balanced = RQKMeans(2, 16, balanced=True).fit(x)
    assert all(31 <= count <= 32 for level in balanced.codes.T for count in torch.bincount(level).tolist())


def test_memory_mapped_file_in_slices(tmp_path, monkeypatch):
    x = topical(40_000, 8, 50)
    x.numpy().tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "r", shape=x.shape)
    asked, read = [], OrderedRows.read
    monkeypatch.setattr(OrderedRows, "read", lambda self, rows: asked.append(len(out := read(self, rows))) or out)
    sids = RQKMeans(2, 8, sample=50).fit(mapped)
    assert max(asked) <= 16_384 and sids.quality["sampled"] == 400
    assert torch.equal(sids.codes, RQKMeans(2, 8, sample=50).fit(x).codes)
    assert torch.equal(sids.codes, sids.assign(x))
    assert sids.quality["residual_energy"] == pytest.approx(sids.residual_energy(x), rel=1e-4)


def test_a_sample_is_almost_as_good():
    x = topical(6000, 16, 30)
    assert error(RQKMeans(2, 16, sample=60).fit(x), x) < 1.1 * error(RQKMeans(2, 16).fit(x), x)


def test_dead_codes_are_put_to_use():
    x = topical(200, 6, 10)
    books = [torch.cat([x[:4], torch.full((3, 6), 100.0)])]
    codes, left, energy, moved = encode_rows(x, books, rounding=1e-6)
    assert moved == [3] and len(codes[0].unique()) == 7 and books[0].abs().max() < 2
    assert energy[0] == pytest.approx(left.square().sum().item(), rel=1e-5)
    untouched = encode_rows(x[:4], [books[0].clone()], rounding=1e-6)  # no row has a large error
    assert untouched[3] == [0]


@pytest.mark.parametrize("distinct, codes", [(2, 8), (5, 8), (8, 8), (3, 40)])
def test_duplicates_reduce_the_level(distinct, codes):
    x = gaussian(distinct, 4, 1).repeat(20, 1)
    sids = RQKMeans(2, codes).fit(x)
    assert sids.level_sizes == [distinct, 1] and sids.quality["reduced"] == [codes - distinct, codes - 1]
    assert torch.allclose(sids.reconstruct(), x, atol=1e-5)


def test_residuals_that_coincide():
    a, b = gaussian(4, 6, 0) * 10, gaussian(3, 6, 1)
    x = (a[:, None] + b - b.mean(0)).reshape(-1, 6).repeat(5, 1)
    sids = RQKMeans(2, 4).fit(x)
    assert sids.level_sizes == [4, 3] and sids.quality["residual_energy"][1] < 1e-6


@pytest.mark.parametrize(
    "change",
    [lambda x: x * 2.0**20, lambda x: x * 2.0**-20, lambda x: x.double(), lambda x: x.numpy(), lambda x: x.clone().requires_grad_()],
)
def test_scale_and_container_do_not_matter(change):
    x = gaussian(100, 5, 2)
    assert torch.equal(RQKMeans(2, 8).fit(x).codes, RQKMeans(2, 8).fit(change(x)).codes)


@pytest.mark.parametrize("shift", [10.0, 300.0])
def test_far_from_the_origin(shift):
    x = topical(300, 8, 12)
    near, far = RQKMeans(2, 12).fit(x), RQKMeans(2, 12).fit(x + shift)
    assert error(far, x + shift) == pytest.approx(error(near, x), rel=0.15)


def test_input_is_left_alone():
    x = gaussian(80, 4)
    before = x.clone()
    threads = torch.get_num_threads()
    RQKMeans(2, 8).fit(x)
    assert torch.equal(x, before) and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.full((9, 4), float("nan")), "9 of 9 rows hold NaN"),
        (torch.eye(9).index_fill(0, torch.tensor(2), float("inf")), "the first is row 2"),
        (torch.ones(9, 4), "all 9 rows are equal"),
        (torch.zeros(9, 4), "all 9 rows are equal"),
        (torch.tensor([[0.0], [-0.0]]).repeat(5, 3), "all 10 rows are equal"),
        (torch.eye(3), "got 8 for 3 items"),
        (torch.ones(1, 4), "got 8 for 1 items"),
        (torch.zeros(0, 4), "got shape"),
        (torch.ones(9), "got shape"),
    ],
)
@pytest.mark.parametrize("balanced", [False, True])
def test_refused(x, message, balanced):
    with pytest.raises(GTIError, match=message):
        RQKMeans(2, 8, balanced=balanced).fit(x)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(levels=27), "levels: got 27, allowed: a whole number from 1 to 26"),
        (dict(codes=2.5), "codes: got 2.5"),
        (dict(iterations=0), "iterations: got 0"),
        (dict(sample=True), "sample: got True"),
        (dict(sweeps=-1), "sweeps: got -1"),
        (dict(seed=-1), "seed: got -1"),
        (dict(seed="a"), "seed: got 'a'"),
        (dict(balanced=1), "balanced: got 1"),
        (dict(device="gpu"), "device: got 'gpu'"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(GTIError, match=message):
        RQKMeans(**settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    x = topical(2000, 32, 100)
    one, two, cpu = RQKMeans(3, 32, device="cuda").fit(x), RQKMeans(3, 32, device="cuda").fit(x), RQKMeans(3, 32, device="cpu").fit(x)
    assert torch.equal(one.codes, two.codes) and torch.equal(one.assign(x), one.codes)
    assert error(one, x) == pytest.approx(error(cpu, x), rel=0.02)
