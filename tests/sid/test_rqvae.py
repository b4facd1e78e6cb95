"RQ-VAE: killed and resumed to the last bit, damaged folders, hostile vectors, presets."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from gti_nb.core import GTIError, file_hash, write_sealed
from gti_nb.sid.collisions import sinkhorn_plan
from gti_nb.sid.residual import ResidualQuantizer, cluster_codebooks, diversity_loss, nearest_codes, reseed_dead, start_codebooks
from gti_nb.sid.rqvae import RQVAE
from gti_nb.sid.rqvae_config import PRESETS, RQVAEConfig, rqvae_config

TINY = dict(hidden=(24,), latent=6, levels=3, codes=16, epochs=6, batch_size=64, measure_every=2)


def topics(n: int = 200, d: int = 20, seed: int = 0) -> torch.Tensor:
    "Unit vectors around eight topics."
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(8, d, generator=g)[torch.arange(n) % 8] + 0.4 * torch.randn(n, d, generator=g), dim=1)


def fit(x: torch.Tensor, out_dir=None, on_epoch=None, checkpoint_seconds=0.0, **fields):
    rqvae = RQVAE("paper", "cpu", **{**TINY, **fields})
    return rqvae, rqvae.fit(x, out_dir, progress=False, on_epoch=on_epoch, checkpoint_seconds=checkpoint_seconds)


# Each child is forked before this process computes anything. It fits, and is killed after an epoch or as the n-th file is put in place.
PROGRAM = """
import os, signal, sys
import torch
from gti_nb.core import content_hash
from sid.test_rqvae import fit, topics
import gti_nb.core.files as files

def killed(folder, epoch=None, replace=None):
    pid = os.fork()
    if pid == 0:
        def kill(row):
            if row["epoch"] == epoch: os.kill(os.getpid(), signal.SIGKILL)
        if replace is not None:
            count, real = [0], os.replace
            def move(*a):
                count[0] += 1
                if count[0] == replace: os.kill(os.getpid(), signal.SIGKILL)
                return real(*a)
            files.os.replace = move
        fit(topics(), folder, on_epoch=kill)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL

torch.set_num_threads(1)
root = sys.argv[1]
for epoch in (1, 2, 3, 6): killed(f"{root}/epoch{epoch}", epoch=epoch)
for replace in (1, 2, 3, 5): killed(f"{root}/replace{replace}", replace=replace)
killed(f"{root}/twice", epoch=2); killed(f"{root}/twice", epoch=4)
whole, sids = fit(topics())
for name in sorted(os.listdir(root)):
    again, other = fit(topics(), f"{root}/{name}")
    assert torch.equal(sids.codes, other.codes) and all(torch.equal(a, b) for a, b in zip(sids.codebooks, other.codebooks)), name
    assert content_hash(dict(whole.network.state_dict())) == content_hash(dict(again.network.state_dict())), name
    assert whole.history.equals(again.history) and sids.quality == other.quality, name
print("same", len(os.listdir(root)))
"""


def test_killed_anywhere_and_resumed_is_the_same_to_the_last_bit(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], env=env, capture_output=True, text=True)
    assert done.stdout == "same 9\n", done.stdout + done.stderr


def test_a_finished_run_is_not_repeated(tmp_path):
    first, sids = fit(topics(), tmp_path)
    before = {p.name: file_hash(p) for p in tmp_path.iterdir()}
    again, other = fit(topics(), tmp_path, on_epoch=lambda row: pytest.fail("trained again"))
    assert torch.equal(sids.codes, other.codes) and sids.quality == other.quality and first.history.equals(again.history)
    assert {p.name: file_hash(p) for p in tmp_path.iterdir()} == before
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_history_and_callback_tell_the_same(tmp_path):
    rows = []
    rqvae, sids = fit(topics(), tmp_path, on_epoch=rows.append)
    assert pd.DataFrame(rows).equals(rqvae.history) and list(rqvae.history.epoch) == list(range(1, 7))
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), rqvae.history, check_dtype=False)
    measured = rqvae.history.dropna()
    assert (
        list(measured.epoch) == [2, 4, 6] and measured.collision.iloc[-1] == sids.quality["collision"] == sids.summary()["collision_excess"]
    )
    assert measured.reseeded.sum() == sum(sids.quality["reseeded"])
    assert sids.quality["utilization"] == list(sids.report()["utilization"])


def cut(folder: Path) -> None:
    data = next(folder.glob("*.safetensors"))
    data.write_bytes(data.read_bytes()[:-100])


def flip(folder: Path) -> None:
    data = next(folder.glob("*.safetensors"))
    raw = bytearray(data.read_bytes())
    raw[-9] ^= 1
    data.write_bytes(raw)


def remove(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def newer(folder: Path) -> None:
    edit(folder, schema=2)


def no_json(folder: Path) -> None:
    (folder / "rqvae.json").write_text("{")


def foreign(folder: Path) -> None:
    (folder / "rqvae.json").write_text('{"schema": 1}')


def touched(folder: Path) -> None:
    path = folder / "rqvae.json"
    path.write_text(path.read_text().replace('"epoch": 4', '"epoch": 5'))


def edit(folder: Path, **fields) -> None:
    path = folder / "rqvae.json"
    write_sealed(path, {**json.loads(path.read_text()), **fields})


def nan(folder: Path) -> None:
    data = next(folder.glob("*.safetensors"))
    tensors = safetensors.torch.load(data.read_bytes())
    tensors["network.encoder.0.weight"][0, 0] = float("nan")
    data.write_bytes(safetensors.torch.save(tensors))
    edit(folder, sha256=file_hash(data))


@pytest.fixture(scope="module")
def half_way(tmp_path_factory) -> Path:
    "A run that was interrupted after epoch 4."
    folder = tmp_path_factory.mktemp("run")

    def stop(row):
        if row["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(topics(), folder, stop, 0.0)
    return folder


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "damaged"),
        (flip, "damaged"),
        (remove, "no such file"),
        (newer, "schema 2, this version reads 1"),
        (no_json, "not valid JSON"),
        (foreign, "pass a folder written by RQVAE"),
        (touched, "not what was written"),
        (nan, "encoder.0.weight holds NaN"),
    ],
)
def test_damage_is_refused_and_nothing_is_touched(half_way, tmp_path, damage, message):
    folder = tmp_path / "run"
    shutil.copytree(half_way, folder)
    damage(folder)
    before = {p.name: file_hash(p) for p in folder.iterdir()}
    with pytest.raises(GTIError, match=message):
        fit(topics(), folder)
    with pytest.raises(GTIError, match=message):
        RQVAE.load(folder, "cpu")
    assert {p.name: file_hash(p) for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(beta=0.5), "beta: 0.25 there, 0.5 now"),
        (dict(hidden=(24, 24)), r"hidden: \[24\] there, \[24, 24\] now"),
        (dict(epochs=20, seed=1), "epochs: 6 there, 20 now; seed: 0 there, 1 now"),
    ],
)
def test_other_settings_are_refused_by_name(half_way, fields, message):
    with pytest.raises(GTIError, match=message):
        fit(topics(), half_way, **fields)


def test_other_vectors_and_other_folders_are_refused(half_way, tmp_path):
    with pytest.raises(GTIError, match=r"another run \(vectors: '\w+' there, '\w+' now\)"):
        fit(topics(seed=1), half_way)
    (tmp_path / "history.csv").write_text("mine")
    with pytest.raises(GTIError, match="history.csv but no checkpoint"):
        fit(topics(), tmp_path)
    assert (tmp_path / "history.csv").read_text() == "mine"


def test_saved_model(tmp_path):
    rqvae, sids = fit(topics())
    folder = rqvae.save(tmp_path / "model")
    loaded = RQVAE.load(folder, "cpu")
    assert loaded.config == rqvae.config and loaded.history.equals(rqvae.history)
    assert torch.equal(loaded.latent(topics()), rqvae.latent(topics())) and torch.equal(loaded.assign(topics()), sids.codes)
    with pytest.raises(GTIError, match="not empty"):
        rqvae.save(folder)
    with pytest.raises(GTIError, match="without its optimizer"):
        fit(topics(), folder)


def test_the_order_of_items_does_not_matter():
    x = topics()
    shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    (_, a), (_, b) = fit(x), fit(x[shuffle])
    assert (
        torch.equal(a.codes[shuffle], b.codes)
        and all(torch.equal(p, q) for p, q in zip(a.codebooks, b.codebooks, strict=True))
        and a.quality == b.quality
    )


def test_seeds_and_the_callers_generator():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    (_, a) = fit(topics())
    assert torch.equal(torch.rand(4), expected), "the caller's generator moved"
    torch.manual_seed(9)
    (_, b), (_, c) = fit(topics()), fit(topics(), seed=1)
    assert a.content_hash == b.content_hash != c.content_hash


def test_codes_are_the_nearest_ones_in_latent_space():
    x = topics()
    rqvae, sids = fit(x)
    residual = rqvae.latent(x).double()
    for codes, book in zip(sids.codes.T, sids.codebooks, strict=True):
        distance = torch.cdist(residual, book.double())
        assert torch.allclose(distance.gather(1, codes[:, None])[:, 0], distance.min(1).values, atol=1e-9)
        residual = residual - book[codes]
    assert torch.equal(sids.assign(rqvae.latent(x)), sids.codes) and torch.equal(rqvae.assign(x), sids.codes)
    assert sids.residual_energy(rqvae.latent(x)) == pytest.approx(sids.quality["residual_energy"], rel=1e-5)
    error = (rqvae.decode(sids.reconstruct()) - x).double().square()
    assert sids.quality["reconstruction"] == pytest.approx(error.mean().item(), rel=1e-4)
    assert sids.quality["reconstruction_energy"] == pytest.approx((error.sum() / x.double().square().sum()).item(), rel=1e-4)
    assert sids.resolve("hungarian", rqvae.latent(x)).summary()["collision_excess"] <= sids.quality["collision"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(name):
    rqvae = RQVAE(name, "cpu", epochs=2, measure_every=1)
    sids = rqvae.fit(topics(300, 32), progress=False)
    assert sids.levels == rqvae.config.levels and sids.level_sizes == [rqvae.config.codes] * sids.levels
    assert all(book.isfinite().all() and book.shape[1] == 32 for book in sids.codebooks)
    assert [layer.out_features for layer in rqvae.network.encoder if isinstance(layer, torch.nn.Linear)] == [*rqvae.config.hidden, 32]
    assert (sum(sids.quality["reseeded"]) > 0) <= rqvae.config.reseed


@pytest.mark.parametrize("scale, shift", [(1e-4, 0), (1e4, 0), (1, 10)])
def test_training_works_at_every_scale(scale, shift):
    x = topics(400) * scale + shift
    _, sids = fit(x, epochs=60, sinkhorn_epsilon=0.0)
    variance = (x - x.mean(0)).square().mean().item()
    assert sids.quality["reconstruction"] < 0.6 * variance, "the decoder learnt nothing"
    assert min(sids.quality["utilization"]) > 0.6 and sids.quality["residual_energy"][-1] < 0.25


@pytest.mark.parametrize("kind", ["float64", "float16", "numpy", "memmap"])
def test_kinds_of_vectors(kind, tmp_path):
    x = topics()
    _, sids = fit(x.half().float() if kind == "float16" else x)
    np.save(tmp_path / "x.npy", x.numpy())
    given = dict(float64=x.double(), float16=x.half(), numpy=x.numpy(), memmap=np.load(tmp_path / "x.npy", mmap_mode="r"))[kind]
    assert torch.equal(fit(given)[1].codes, sids.codes)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.full((20, 4), float("nan")), "20 of 20 rows hold NaN"),
        (torch.eye(20).index_fill(0, torch.tensor(2), float("inf")), "the first is row 2"),
        (torch.ones(20, 4), "all 20 rows are equal"),
        (torch.zeros(20, 4), "all 20 rows are equal"),
        (torch.ones(1, 4), "all 1 rows are equal"),
        (torch.eye(3), "got 16 for 3 items"),
        (torch.zeros(0, 4), "got shape"),
        (torch.ones(9), "got shape"),
    ],
)
def test_refused_before_a_file_is_written(x, message, tmp_path):
    with pytest.raises(GTIError, match=message):
        fit(x, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("distinct", [2, 5, 16, 17])
def test_duplicates_reduce_the_codebooks(distinct):
    x = topics(distinct).repeat(20, 1)
    _, sids = fit(x)
    size = min(16, distinct)
    assert sids.level_sizes == [size] * 3 and sids.quality["reduced"] == [16 - size] * 3
    assert all(torch.equal(sids.codes[i::distinct], sids.codes[[i] * 20]) for i in range(distinct)), "equal items, different codes"
    assert all(np.isfinite(v).all() for v in sids.quality.values())


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    with pytest.raises(GTIError, match=r"epoch \d+: the loss is (nan|inf).*Lower learning_rate"):
        fit(topics(), tmp_path, learning_rate=1e18, epochs=30)
    for checkpoint in tmp_path.glob("*.safetensors"):
        assert all(t.isfinite().all() for name, t in safetensors.torch.load(checkpoint.read_bytes()).items() if name != "history")


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(codes=0), "codes: got 0"),
        (dict(levels=27), "levels: got 27"),
        (dict(hidden=(8, 0)), "hidden: got 0"),
        (dict(beta=-1), "beta: got -1"),
        (dict(dropout=1), "dropout: got 1"),
        (dict(learning_rate=0), "learning_rate: got 0"),
        (dict(seed=-1), "seed: got -1"),
        (dict(epoch=3), "did you mean 'epochs'"),
    ],
)
def test_settings_refused(fields, message):
    with pytest.raises(GTIError, match=message):
        rqvae_config("small", **fields)


def test_settings_from_json():
    assert RQVAEConfig(**json.loads(json.dumps(dict(hidden=[8, 4])))) == RQVAEConfig(hidden=(8, 4))


def test_dead_codes_come_back_to_life():
    latents = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    quantizer = ResidualQuantizer(2, 16, 4)
    start_codebooks(quantizer, latents)
    for book in quantizer.codebooks:
        book.data[::2] += 1e3

    def error():
        found = nearest_codes(latents, quantizer.codebooks)
        return (latents - sum(b[c] for b, c in zip(quantizer.codebooks, found.T, strict=True))).square().sum().item()

    before = error()
    moved = reseed_dead(quantizer, latents)
    codes = nearest_codes(latents, quantizer.codebooks)
    assert all(m.tolist() == list(range(0, 16, 2)) for m in moved) and all(len(c.unique()) == 16 for c in codes.T)
    assert error() < before


def test_reseeding_stops_where_no_item_has_a_large_error():
    quantizer = ResidualQuantizer(1, 8, 3)
    quantizer.codebooks[0].data[:3] = torch.eye(3)
    assert reseed_dead(quantizer, torch.eye(3).repeat(5, 1))[0].tolist() == []


def test_diversity_loss_against_its_formula():
    g = torch.Generator().manual_seed(0)
    book, groups, codes = torch.randn(6, 4, generator=g), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 3, 5])
    terms = []
    for c in codes.tolist():
        neighbour = c ^ 1
        others = [j for j in range(6) if j != c]
        terms.append(-(torch.exp(book[c] @ book[neighbour]) / sum(torch.exp(book[c] @ book[j]) for j in others)).log().item())
    assert diversity_loss(book, codes, groups).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_gradients_reach_codes_and_items():
    quantizer = ResidualQuantizer(2, 8, 4, beta=0.25)
    latents = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    start_codebooks(quantizer, latents)
    cluster_codebooks(quantizer)
    for book in quantizer.codebooks:
        book.data += 0.05
    latents.requires_grad_()
    _, loss, diversity = quantizer(latents)
    loss.backward(retain_graph=True)
    residual, expected = latents.detach(), 0
    for book, codes in zip(quantizer.codebooks, nearest_codes(latents.detach(), quantizer.codebooks).T, strict=True):
        residual = residual - book.detach()[codes]
        expected = expected + 0.25 * 2 * residual / residual.numel() / 2
        assert torch.allclose(book.grad, -torch.zeros(8, 4).index_add(0, codes, 2 * residual / residual.numel() / 2), atol=1e-6)
    assert torch.allclose(latents.grad, expected, atol=1e-6)
    diversity.backward()


def test_balanced_assignment_is_used_on_the_last_level_only():
    latents = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + 3
    quantizer = ResidualQuantizer(2, 8, 4, sinkhorn_epsilon=0.01, sinkhorn_iterations=200)
    for book in quantizer.codebooks:
        book.data.normal_(generator=torch.Generator().manual_seed(1))
    residual, book = (
        latents - quantizer.codebooks[0].detach()[nearest_codes(latents, quantizer.codebooks)[:, 0]],
        quantizer.codebooks[1].detach(),
    )
    wanted = sinkhorn_plan(torch.cdist(residual, book).square(), 0.01, 200).argmax(1)
    quantized, _, _ = quantizer(latents)
    assert torch.allclose(quantized.detach(), latents - residual + book[wanted], atol=1e-5)
    assert torch.bincount(wanted, minlength=8).min() >= 6, "not balanced"
