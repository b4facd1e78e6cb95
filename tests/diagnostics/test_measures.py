"Diagnostics against independent implementations, on hostile input, at scale, and through the disk."

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from gti_nb.core import GTIError
from gti_nb.diagnostics.geometry import cosine_matrix, drift, mean_cosine, mean_share, median_spread, nearest_rows, rsa, spread_ratio
from gti_nb.diagnostics.spectral import effective_rank, participation_ratio, singular_spectrum, stable_rank
from gti_nb.diagnostics.summary import diagnose, load_diagnostics, save_diagnostics


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (1, 5), (5, 1)])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_ranks_follow_from_the_covariance(rng, shape, offset):
    x = rng.normal(size=shape) + offset
    eigenvalues = np.linalg.eigvalsh(x.T @ x).clip(0)
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    p = p[p > 1e-7]  # the Gram matrix knows its zeros to half the digits only
    assert effective_rank(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert stable_rank(x) == pytest.approx(eigenvalues.sum() / eigenvalues.max())
    assert participation_ratio(x, centre=False) == pytest.approx(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())
    if shape[0] > 1:
        covariance = np.atleast_2d(np.cov(x.T))
        assert participation_ratio(x) == pytest.approx(np.trace(covariance) ** 2 / np.square(covariance).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_identical_rows_have_no_centred_rank_at_any_scale(rng, dtype, scale):
    x = np.tile(scale * rng.normal(size=576), (256, 1)).astype(dtype)
    assert effective_rank(x) == pytest.approx(1, abs=1e-6)
    assert np.isnan(effective_rank(x, centre=True))
    assert not singular_spectrum(x, centre=True).any()


def test_rows_that_differ_in_single_precision_do_have_one(rng):
    base = rng.normal(size=64)
    x = (base + 1e-5 * rng.normal(size=(32, 64))).astype(np.float32)
    assert effective_rank(x, centre=True) > 20
    assert spread_ratio(x, rng.normal(size=(500, 64))) < 1e-4


def test_cosines_against_scikit_learn(rng):
    x, y = rng.normal(size=(30, 9)) + 1, rng.normal(size=(20, 9))
    np.testing.assert_allclose(cosine_matrix(x, y), cosine_similarity(x, y), atol=1e-12)
    assert mean_cosine(x) == pytest.approx(cosine_similarity(x)[np.triu_indices(30, 1)].mean())
    assert mean_share(x) == pytest.approx(1 - np.square(x - x.mean(0)).sum() / np.square(x).sum())


@pytest.mark.parametrize("block", [1, 7, 256])
def test_nearest_rows_against_scikit_learn(rng, block):
    pretrained, tokens = rng.normal(size=(400, 16)), rng.normal(size=(25, 16))
    distance, index = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(pretrained).kneighbors(tokens)
    found, cosine = nearest_rows(tokens, pretrained, k=6, block=block)
    np.testing.assert_array_equal(found, index)
    np.testing.assert_allclose(cosine, 1 - distance, atol=1e-5)


def test_rsa_against_scipy_with_ties(rng):
    codebook, rows = rng.normal(size=(40, 3)), rng.normal(size=(40, 20))
    codebook[5:10] = codebook[4]
    upper = np.triu_indices(40, 1)
    a, b = cosine_similarity(codebook)[upper].round(12), cosine_similarity(rows)[upper]
    found = rsa(codebook, rows)
    assert found.pearson == pytest.approx(pearsonr(a, b)[0], abs=1e-9)
    assert found.spearman == pytest.approx(spearmanr(a, b)[0], abs=1e-3)


def test_rsa_p_value_is_small_for_structure_and_uniform_for_noise(rng):
    codebook = rng.normal(size=(24, 6))
    lifted = codebook @ rng.normal(size=(6, 30)) + 0.3 * rng.normal(size=(24, 30))
    assert rsa(codebook, lifted, permutations=99).p_value == 0.01
    noise = [rsa(rng.normal(size=(12, 6)), rng.normal(size=(12, 6)), permutations=99, seed=i).p_value for i in range(200)]
    assert 0.4 < np.mean(noise) < 0.6 and np.mean(np.array(noise) <= 0.1) < 0.18


def test_rsa_of_a_level_above_the_limit_uses_a_subset_that_agrees(rng):
    codebook = rng.normal(size=(1500, 8))
    rows = codebook @ rng.normal(size=(8, 16)) + rng.normal(size=(1500, 16))
    subset, everything = rsa(codebook, rows, max_codes=400), rsa(codebook, rows, max_codes=1500)
    assert (subset.codes, everything.codes) == (400, 1500)
    assert subset.pearson == pytest.approx(everything.pearson, abs=0.03)


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((2, 2, 2)), np.ones((0, 3)), np.ones((3, 0)), np.full((2, 2), np.inf)])
def test_what_is_no_matrix_of_numbers_is_refused(bad):
    for measure in (effective_rank, stable_rank, participation_ratio, cosine_matrix, mean_cosine, mean_share):
        with pytest.raises(GTIError, match="rows: "):
            measure(bad)


def test_the_input_is_never_changed(rng):
    x, pretrained = rng.normal(size=(20, 8)), rng.normal(size=(50, 8))
    copies = x.copy(), pretrained.copy()
    diagnose(x, pretrained)
    drift(x, x + 1)
    nearest_rows(x, pretrained)
    rsa(x, x, permutations=9)
    np.testing.assert_array_equal(x, copies[0])
    np.testing.assert_array_equal(pretrained, copies[1])


def toy(rng, levels=((16, 4), (16, 4), (3, 0)), d=24):
    sids = SimpleNamespace(codebooks=[torch.randn(k, c, generator=torch.Generator().manual_seed(k + i)) for i, (k, c) in enumerate(levels)])
    return rng.normal(size=(sum(k for k, _ in levels), d)), rng.normal(size=(300, d)) + 0.5, sids


def test_tensors_of_any_kind_are_taken(rng):
    rows, pretrained, sids = toy(rng)
    parameter = torch.nn.Parameter(torch.tensor(rows, dtype=torch.float32))
    as_tensor = diagnose(parameter, torch.tensor(pretrained, dtype=torch.float32), sids)
    as_array = diagnose(rows.astype(np.float32), pretrained.astype(np.float32), sids)
    np.testing.assert_equal(as_tensor.numbers, as_array.numbers)
    half = diagnose(parameter.bfloat16(), torch.tensor(pretrained).bfloat16(), sids)
    assert half.numbers["effective_rank"] == pytest.approx(as_array.numbers["effective_rank"], rel=0.01)


def test_a_seed_gives_the_same_diagnosis_and_another_seed_another_sample(rng):
    rows, pretrained, sids = toy(rng)
    one, again, other = (diagnose(rows, pretrained, sids, seed=s) for s in (0, 0, 1))
    np.testing.assert_equal(one.numbers, again.numbers)
    np.testing.assert_equal(one.arrays, again.arrays)
    assert one.numbers["effective_rank_pretrained"] != other.numbers["effective_rank_pretrained"]
    assert one.numbers["effective_rank"] == other.numbers["effective_rank"]


def test_rsa_is_level_by_level_and_skips_levels_without_geometry(rng):
    rows, pretrained, sids = toy(rng, levels=((16, 4), (3, 0), (12, 4)))
    numbers = diagnose(rows, pretrained, sids).numbers
    assert [n for n in numbers if n.startswith("rsa_pearson")] == ["rsa_pearson_level1", "rsa_pearson_level3"]
    assert numbers["rsa_pearson_level3"] == pytest.approx(rsa(sids.codebooks[2].numpy(), rows[19:]).pearson)


def test_fewer_pretrained_rows_than_new_tokens_and_a_single_token(rng):
    d = diagnose(rng.normal(size=(50, 8)), rng.normal(size=(20, 8)))
    assert d.numbers["n_pretrained"] == 20 and d.arrays["cosine_sample"].shape == (70, 70)
    single = diagnose(rng.normal(size=(1, 8)), rng.normal(size=(20, 8)))
    assert np.isnan(single.numbers["mean_cosine"]) and "single row" in single.reasons["mean_cosine"]


def test_many_tokens_and_a_large_vocabulary_keep_the_arrays_small(rng):
    d = diagnose(rng.normal(size=(3000, 16)).astype(np.float32), rng.normal(size=(60_000, 16)).astype(np.float32))
    assert d.arrays["cosine_new"].shape == (1024, 1024)
    assert (np.diff(d.arrays["cosine_new_index"]) > 0).all() and d.arrays["cosine_new_index"][[0, -1]].tolist() == [0, 2999]
    assert d.numbers["spread_ratio_pretrained"] == pytest.approx(1, abs=0.05)


def test_spread_in_blocks_equals_the_whole(rng):
    x = rng.normal(size=(1000, 5)).astype(np.float32)
    expected = np.median(np.linalg.norm(x.astype(float) - x.astype(float).mean(0), axis=1))
    assert median_spread(x, block=64) == pytest.approx(expected)


def test_disk_round_trip_keeps_nan_reasons_and_arrays(rng, tmp_path):
    rows, pretrained, sids = toy(rng)
    d = diagnose(np.tile(pretrained.mean(0), (len(rows), 1)), pretrained, sids)
    path = save_diagnostics(d, tmp_path / "diagnostics-init.json")
    assert "NaN" not in path.read_text() and json.loads(path.read_text())["numbers"]["effective_rank_centred"] is None
    back = load_diagnostics(path)
    np.testing.assert_equal(back.numbers, d.numbers)
    np.testing.assert_equal(back.arrays, d.arrays)
    assert back.reasons == d.reasons and "rsa_pearson_level1" in d.reasons
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diagnostics-init.json", "diagnostics-init.safetensors"]


def test_damaged_or_missing_files_are_refused_by_name(rng, tmp_path):
    path = save_diagnostics(diagnose(rng.normal(size=(9, 4)), rng.normal(size=(9, 4))), tmp_path / "d.json")
    arrays = path.with_suffix(".safetensors")
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GTIError, match=r"d\.safetensors: not a readable safetensors file"):
        load_diagnostics(path)
    arrays.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(GTIError, match=r"d\.safetensors has other bytes than were written"):
        load_diagnostics(path)
    record = path.read_text()
    path.write_text(record.replace('"n": 9', '"n": 8'))
    with pytest.raises(GTIError, match=r"d\.json: its content is not what was written"):
        load_diagnostics(path)
    path.write_text(record)
    arrays.unlink()
    with pytest.raises(GTIError, match=r"d\.safetensors: missing"):
        load_diagnostics(path)
    path.write_text("[1]")
    with pytest.raises(GTIError, match="expected a file that save_diagnostics wrote"):
        load_diagnostics(path)
    with pytest.raises(GTIError, match="ends in .json"):
        save_diagnostics(diagnose(np.eye(3), np.eye(3)), tmp_path / "d")


def test_diagnostics_load_neither_torch_nor_plotly():
    code = "import sys, gti_nb.diagnostics.summary; print(sorted({'torch', 'plotly', 'ipywidgets'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
