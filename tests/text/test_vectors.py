"text.vectors: the real encoder against sentence-transformers' own way, the cache, two processes, and texts nobody expects."

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from gti_nb.assets import asset_path, load_base, tiny_tokenizer
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.text import encode_text

TEXTS = ["The Lion King. Film from 1994.", "x", "A long one " * 80, "", "مرحبا 🎬 <|im_end|>", "The Lion King. Film from 1994."]


@pytest.fixture(scope="module")
def minilm():
    return asset_path("all-minilm-l6-v2", "encoder")


@pytest.fixture(scope="module")
def plain(minilm):
    "sentence-transformers' own vectors, one text at a time."
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(minilm), device="cpu")
    return lambda texts: torch.tensor(np.stack([encoder.encode(t, normalize_embeddings=True, show_progress_bar=False) for t in texts]))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A folder like Qwen3-Embedding's: a random decoder whose last token is the vector; texts with a Z have none."
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model, tokenizer = load_base("tiny-qwen3")
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.encode("Z")] = float("nan")
    source, folder = tmp_path_factory.mktemp("decoder"), tmp_path_factory.mktemp("encoder")
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    SentenceTransformer(modules=[Transformer(str(source), max_seq_length=64), Pooling(32, "lasttoken")], device="cpu").save(str(folder))
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache folder; models are given by path, so that nothing is fetched again."
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vectors"


@pytest.fixture
def encoded(monkeypatch):
    "The texts that were really encoded, in a list that grows."
    from sentence_transformers import SentenceTransformer

    seen, encode = [], SentenceTransformer.encode

    def spy(self, texts, **options):
        seen.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", spy)
    return seen


# Vectors


def test_equals_the_plain_encoder(plain):
    got = encode_text(TEXTS, batch_tokens=30, device="cpu", cache=False, progress=False)
    assert got.dtype == torch.float32 and torch.allclose(got, plain(TEXTS), atol=1e-5)
    assert torch.allclose(got.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-5)
    assert torch.equal(got[0], got[5])


def test_any_encoder(tiny):
    from sentence_transformers import SentenceTransformer

    texts = ["a film", "a longer film about war and love", "", "a film " * 300]
    wanted = SentenceTransformer(str(tiny), device="cpu").encode(
        texts, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
    )
    assert torch.allclose(encode_text(texts, tiny, cache=False, progress=False), wanted, atol=1e-5)
    short = encode_text(texts, tiny, max_tokens=8, cache=False, progress=False)
    assert torch.allclose(short[0], wanted[0], atol=1e-5) and not torch.allclose(short[1], wanted[1], atol=1e-2)


def test_an_encoder_without_a_limit(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    SentenceTransformer(modules=[StaticEmbedding(tiny_tokenizer(), embedding_dim=8)], device="cpu").save(str(tmp_path))
    texts = ["a film", "a longer film about war and love", "x"]
    wanted = SentenceTransformer(str(tmp_path), device="cpu").encode(
        texts, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
    )
    assert torch.allclose(encode_text(texts, tmp_path, cache=False, progress=False), wanted, atol=1e-5)
    with pytest.raises(GTIError, match="a vector of zeros for row 1, ''"):
        encode_text(["a", ""], tmp_path, cache=False, progress=False)
    with pytest.raises(GTIError, match="max_tokens: got 9, but this encoder reads texts to their end"):
        encode_text(["a"], tmp_path, max_tokens=9, cache=False, progress=False)


def test_precision(minilm):
    films = load_dataset("movielens-100k").texts()[:150]
    full, half = (encode_text(films, minilm, precision=p, device="cpu", cache=False, progress=False) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32 and (full * half).sum(1).min() >= 0.999
    assert not torch.equal(full, half)


def test_a_row_without_a_vector_is_named(tiny):
    with pytest.raises(GTIError, match="NaN or infinity for row 3, 'Zorro'"):
        encode_text(["a", "a", "b", "Zorro", "c"], tiny, cache=False, progress=False)


def test_absurd_texts(plain, encoded):
    prose = "The quick brown fox jumps over the lazy dog, again and again. " * 1700
    absurd = [prose, "🎬" * 100_000, "a" * 100_000, "‮שלום עולם מרחוק", "nul\0 in \0the middle", " \n\t ", "[SEP][MASK] [PAD]", "ﷺ" * 5_000]
    got = encode_text(absurd + ["broken \ud83c half", "broken ? half"], device="cpu", cache=False, progress=False)
    assert torch.allclose(got[:8], plain(absurd), atol=1e-5)
    assert torch.allclose(got[8], got[9], atol=1e-6)
    assert max(map(len, encoded)) == 32 * 256


def test_no_noise_without_progress(capfd):
    encode_text(TEXTS[:1], cache=False, progress=False)
    assert capfd.readouterr() == ("", "")


def test_progress_counts_texts(capfd):
    encode_text(["one two three four", "five"], cache=False)
    assert "encoding:" in (shown := capfd.readouterr().err) and "2/2 texts" in shown


@pytest.mark.parametrize(
    "texts, says",
    [
        ([], "at least one text"),
        ("one", "expected a list"),
        (["a", 3], "row 1 is 3 of type int"),
        (["a", None], "row 1 is None"),
        (["a", float("nan")], "row 1 is nan"),
    ],
)
def test_wrong_texts(texts, says):
    with pytest.raises(GTIError, match=says):
        encode_text(texts, progress=False)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(model="minilm-l6-v2"), "did you mean 'all-minilm-l6-v2'"),
        (dict(precision="bf61"), "did you mean 'bf16'"),
        (dict(device="gpu"), "device: got 'gpu'"),
        (dict(batch_tokens=0), "batch_tokens: got 0"),
        (dict(batch_tokens=True), "batch_tokens"),
        (dict(max_tokens=7), "max_tokens: got 7"),
        (dict(max_tokens=1024), "max_tokens: got 1024, allowed for this encoder: 8 to 256"),
    ],
)
def test_wrong_options(options, says):
    with pytest.raises(GTIError, match=says):
        encode_text(["a"], progress=False, **{"cache": False, **options})


def test_wrong_folders(tmp_path):
    with pytest.raises(GTIError, match="no \\*.safetensors"):
        encode_text(["a"], model=tmp_path, progress=False)
    (tmp_path / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(GTIError, match="cannot be loaded as a text encoder"):
        encode_text(["a"], model=tmp_path, progress=False)


# The cache


def test_only_new_texts_are_encoded(tiny, cache, encoded):
    old = encode_text(["a film", "b", "b"], tiny, progress=False)
    assert encoded == ["a film", "b"] and torch.equal(old[1], old[2])
    assert torch.equal(encode_text(["b", "a film", "b"], tiny, progress=False), old[[1, 0, 1]])
    more = encode_text(["c", "a film"], tiny, progress=False)
    assert encoded == ["a film", "b", "c"] and torch.equal(more[1], old[0])
    assert {f.suffix for f in cache.rglob("*") if f.is_file()} == {".json", ".safetensors"}


def test_what_is_cached_needs_no_encoder(tiny, cache, monkeypatch):
    wanted = encode_text(["a film"], tiny, progress=False)
    monkeypatch.setattr("gti_nb.text.vectors.load_encoder", lambda *_: pytest.fail("the encoder was loaded"))
    assert torch.equal(encode_text(["a film"], tiny, progress=False), wanted)


def test_other_settings_are_other_vectors(tiny, cache, encoded, tmp_path):
    for options in ({}, dict(precision="bf16"), dict(max_tokens=8)):
        encode_text(["a film"], tiny, progress=False, **options)
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    first = encode_text(["a film"], other, progress=False)
    assert len(encoded) == 3, "the same content in another folder is the same encoder"
    file = next(other.rglob("*.safetensors"))
    weights = safetensors.torch.load(file.read_bytes())
    file.write_bytes(safetensors.torch.save({k: v * 1.5 for k, v in weights.items()}, {"format": "pt"}))
    assert not torch.allclose(encode_text(["a film"], other, progress=False), first, atol=1e-3) and len(encoded) == 4


def test_cache_off(tiny, cache, encoded):
    for _ in range(2):
        encode_text(["a film"], tiny, cache=False, progress=False)
    assert len(encoded) == 2 and not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(f.read_bytes()[:-9]),
        lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\x7f"),
        lambda f: f.rename(f.with_stem("0" * 64)),
        lambda f: (f.unlink(), f.mkdir()),
    ],
)
def test_damaged_files_are_computed_again(tiny, cache, encoded, damage, capsys):
    wanted = encode_text(["a film"], tiny, progress=False)
    damage(next(cache.rglob("*.safetensors")))
    assert torch.equal(encode_text(["a film"], tiny, progress=False), wanted) and len(encoded) == 2
    assert torch.equal(encode_text(["a film"], tiny, progress=False), wanted)


def replaced(cache, change):
    "Replace the one file of a cache by another, under the name that its content gives it."
    (file,) = cache.rglob("*.safetensors")
    held = safetensors.torch.load(file.read_bytes())
    data = safetensors.torch.save(held | {name: make(held[name]) for name, make in change.items()})
    file.unlink()
    (file.parent / f"{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"vectors": lambda v: v * float("nan")}, "not all of length 1"),
        ({"vectors": lambda v: v * float("inf")}, "not all of length 1"),
        ({"vectors": lambda v: v * 0}, "not all of length 1"),
        ({"vectors": lambda v: torch.nn.functional.normalize(v[:, :5])}, "5 dimensions, those of this encoder have 32"),
        ({"vectors": lambda v: torch.nn.functional.normalize(torch.cat([v, v], 1))}, "64 dimensions"),
        ({"vectors": lambda v: v.double()}, "does not hold keys and vectors"),
        ({"vectors": lambda v: v[:0]}, "does not hold keys and vectors"),
        ({"keys": lambda k: k[:, :31].contiguous()}, "does not hold keys and vectors"),
    ],
)
def test_vectors_that_the_encoder_cannot_have_made_are_computed_again(tiny, cache, encoded, capsys, change, says):
    wanted = encode_text(["a film", "b"], tiny, progress=False)
    encoded.clear()
    replaced(cache, change)
    assert torch.equal(encode_text(["a film", "b"], tiny, progress=False), wanted) and sorted(encoded) == ["a film", "b"]
    assert says in capsys.readouterr().out
    encoded.clear()
    assert torch.equal(encode_text(["a film", "b"], tiny, progress=False), wanted) and not encoded


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_text("{"), lambda f: f.write_text('{"width": 5, "seal": ""}')])
def test_without_the_right_width_no_vector_is_taken(tiny, cache, encoded, damage):
    wanted = encode_text(["a film"], tiny, progress=False)
    damage(next(cache.rglob("about.json")))
    for _ in range(2):
        assert torch.equal(encode_text(["a film"], tiny, progress=False), wanted)
    assert encoded == ["a film"] * 2


def test_another_state_of_an_encoder_is_another_encoder(tiny, cache, encoded, tmp_path):
    shutil.copytree(tiny, tmp_path / "mine")
    encode_text(["a film"], tmp_path / "mine", progress=False)
    settings = next((tmp_path / "mine").rglob("config.json"))
    times = settings.stat()
    settings.write_text(settings.read_text().replace("\n", " ", 1))
    os.utime(settings, ns=(times.st_atime_ns, times.st_mtime_ns))
    encode_text(["a film"], tmp_path / "mine", progress=False)
    assert encoded == ["a film"] * 2


def test_a_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "file"))
    got = encode_text(["a film", "b"], tiny, batch_tokens=1, progress=False)
    said = capsys.readouterr().out
    assert got.shape == (2, 32) and said.count("\n") == 1
    assert said.startswith("vectors are not cached and will be computed again next time: ")


def test_a_full_disk_leaves_nothing_behind(tiny, cache, monkeypatch, capsys):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    encode_text(["a film"], tiny, progress=False)
    assert "disk is full" in capsys.readouterr().out and not [f for f in cache.rglob("*") if f.is_file()]


def test_what_was_done_before_an_error_is_kept(tiny, cache, encoded):
    with pytest.raises(GTIError, match="row 0, 'Z'"):
        encode_text(["Z", "a longer film", "a very much longer film"], tiny, batch_tokens=1, progress=False)
    encoded.clear()
    encode_text(["b", "a longer film", "a very much longer film"], tiny, progress=False)
    assert encoded == ["b"]


def test_many_small_additions_are_gathered(tiny, cache, encoded):
    for i in range(40):
        encode_text([f"film {i}"], tiny, progress=False)
    assert len(list(cache.rglob("*.safetensors"))) < 34
    encoded.clear()
    encode_text([f"film {i}" for i in range(40)], tiny, progress=False)
    assert encoded == []


# Several processes


def test_two_processes_give_the_vectors_of_one(minilm, cache, tmp_path):
    script = tmp_path / "encode.py"
    script.write_text("""
import os, sys, torch
from sentence_transformers import SentenceTransformer
from gti_nb.data.dataset import load_dataset
from gti_nb.text import encode_text

texts, rank, mine = load_dataset("toy").texts(), os.environ["RANK"], []
encode = SentenceTransformer.encode

def spy(self, part, **options):
    mine.extend(texts.index(text) for text in part)
    return encode(self, part, **options)

SentenceTransformer.encode = spy
for turn in ("cold", "warm"):
    vectors = encode_text(texts + texts[:3], sys.argv[1], batch_tokens=60, device="cpu", progress=False)
    torch.save({"vectors": vectors, "mine": torch.tensor(mine)}, f"{sys.argv[2]}/{turn}{rank}.pt")
    mine.clear()
torch.distributed.destroy_process_group()
""")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, minilm, tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    cold, warm = ([torch.load(tmp_path / f"{turn}{rank}.pt", weights_only=True) for rank in (0, 1)] for turn in ("cold", "warm"))
    texts = load_dataset("toy").texts()
    alone = encode_text(texts + texts[:3], minilm, batch_tokens=60, device="cpu", cache=False, progress=False)
    for run in cold + warm:
        assert torch.allclose(run["vectors"], alone, atol=1e-6)
    assert torch.equal(cold[0]["vectors"], cold[1]["vectors"])
    shares = [set(run["mine"].tolist()) for run in cold]
    assert shares[0] | shares[1] == set(range(40)) and not shares[0] & shares[1] and min(map(len, shares)) > 10
    assert all(len(run["mine"]) == 0 for run in warm)
