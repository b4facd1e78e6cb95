"A large explorer needs little memory beyond the rows that it shows."

import tracemalloc

import numpy as np
import pytest

from gti_nb.core import GTIError
from gti_nb.diagnostics.geometry import nearest_rows
from gti_nb.explore.explorer import token_figure, token_panel
from gti_nb.explore.tokens import TokenMap
from gti_nb.figures.embeddings import project


def large_map(n_new=40_000, d=128, pretrained=20_000):
    rng = np.random.default_rng(0)
    stages = {stage: rng.standard_normal((n_new, d), dtype=np.float32) for stage in ("init", "grounding", "sft")}
    rows = rng.standard_normal((pretrained, d), dtype=np.float32)
    names = [f"<a_{i}>" for i in range(n_new)]
    tokens = np.arange(100)[:, None]
    held = sum(x.nbytes for x in (*stages.values(), rows))

    def show():
        shown = TokenMap(names, np.zeros(n_new, int), stages, [str(i) for i in range(pretrained)], rows, ["title"] * 100, tokens)
        return shown, token_figure(shown, "sft"), token_panel(shown, "sft", 3)

    return held, show


def test_a_large_map_costs_less_than_its_rows():
    held, show = large_map()
    tracemalloc.start()
    try:
        show()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.2 * held  # dense matrices in float64 took seven times as much


def _at_once(rows, pretrained):
    "The map from one dense matrix."
    mean = (rows.mean(axis=0) + pretrained.mean(axis=0)) / 2
    weighted = np.vstack([(x - mean) / np.sqrt(2 * len(x)) for x in (rows, pretrained)])
    _, s, axes = np.linalg.svd(weighted, full_matrices=False)
    return mean, axes[:2] * np.sign(axes[:2][[0, 1], np.abs(axes[:2]).argmax(axis=1)])[:, None], (s**2 / np.square(s).sum())[:2]


@pytest.mark.parametrize("n", [5, 8192, 8193, 20_000])
def test_the_map_is_that_of_one_dense_matrix(n):
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((n, 6)) * np.arange(6, 0, -1)
    pretrained = rng.standard_normal((300, 6))
    mean, axes, share = _at_once(rows, pretrained)
    for given in (rows, [rows], [rows[:2], rows[2:]]):
        found = project(given, pretrained)
        for a, b in zip((mean, axes, share), found, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
        np.testing.assert_allclose((rows - mean) @ axes.T, found(rows), atol=1e-10)


def test_rows_that_are_not_numbers_are_refused_in_any_block():
    rows = np.ones((9000, 3), dtype=np.float32)
    rows[8500] = np.nan
    with pytest.raises(GTIError, match="rows hold NaN or Inf"):
        project(rows, rows[:10])
    with pytest.raises(GTIError, match="expected \\[n, d\\]"):
        project(rows[:0], rows[:10])


def test_neighbours_across_blocks_are_those_of_all_rows():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((9000, 8))
    reference[100] = 0
    found, cosines = nearest_rows(reference[[3, 8999, 100]], reference, 2)
    assert found[:2, 0].tolist() == [3, 8999] and np.allclose(cosines[:2, 0], 1) and np.isnan(cosines[2]).all()
