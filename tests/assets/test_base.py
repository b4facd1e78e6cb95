"assets.base: the hub takes data files only, and every folder that cannot be a base model is refused."

import hashlib
import json
from pathlib import Path

import pytest
import torch

from gti_nb.assets import asset_path, load_base
from gti_nb.core import GTIError


def test_hub_id_without_network(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(GTIError, match="some-org/some-model: not a local path, and the hub did not provide it"):
        load_base("some-org/some-model")


def test_hub_takes_no_code_and_no_pickles(monkeypatch, tmp_path):
    import fnmatch

    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: asked.update(options) or str(tmp_path))
    assert asset_path("some-org/some-model", "model") == tmp_path
    taken = [
        f
        for f in ("config.json", "model.safetensors", "1_Pooling/config.json", "modeling.py", "pytorch_model.bin", "x.pkl", "model.pt")
        if any(fnmatch.fnmatch(f, p) for p in asked["allow_patterns"])
    ]
    assert taken == ["config.json", "model.safetensors", "1_Pooling/config.json"]


def save_tiny(folder: Path):
    model, tokenizer = load_base("tiny-llama")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def test_local_folder(tmp_path):
    model, tokenizer = save_tiny(tmp_path)
    again, reread = load_base(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert (
        reread("Night in the Garden").input_ids == tokenizer("Night in the Garden").input_ids
        and reread.chat_template == tokenizer.chat_template
    )


def test_pickled_weights_are_refused(tmp_path):
    model, _ = save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(GTIError, match="no \\*.safetensors"):
        load_base(tmp_path)


def test_remote_code_is_refused(tmp_path):
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(GTIError, match="auto_map asks to run evil.py"):
        load_base(tmp_path)
    assert not (tmp_path / "ran").exists()


def cached_snapshot(place: Path) -> Path:
    "A model as the cache of the hub keeps it: links to files named by their hashes."
    save_tiny(place / "source")
    snapshot = place / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    for file in (place / "source").iterdir():
        data = file.read_bytes()
        small = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        blob = place / "blobs" / (small if file.suffix == ".json" else hashlib.sha256(data).hexdigest())
        blob.write_bytes(data)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("mended", [True, False])
def test_a_damaged_download_is_fetched_again(monkeypatch, tmp_path, capsys, name, mended):
    import huggingface_hub

    snapshot = cached_snapshot(tmp_path)
    good, blob = (snapshot / name).read_bytes(), (snapshot / name).resolve()

    def download(repo, **options):
        if not (snapshot / name).exists():
            blob.write_bytes(good if mended else good[:-1])
            (snapshot / name).symlink_to(blob)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    load_base("some-org/some-model")
    assert capsys.readouterr().out == ""
    blob.write_bytes(good[:-2] + b"??")
    if mended:
        load_base("some-org/some-model")
    else:
        with pytest.raises(GTIError, match="not those that the hub lists"):
            load_base("some-org/some-model")
    assert f"{name}: damaged since it was downloaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up_proj" not in k}, "weights missing"),
        (
            lambda w: w | {"model.norm.weight": torch.full_like(w["model.norm.weight"], float("nan"))},
            "NaN or infinity in model.norm.weight",
        ),
    ],
)
def test_damaged_weights_are_refused(tmp_path, damage, says):
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    save_file(damage(load_file(tmp_path / "model.safetensors")), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GTIError, match=says):
        load_base(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    save_tiny(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(GTIError, match="cannot be loaded"):
        load_base(tmp_path)


def test_a_base_that_holds_no_model_is_refused_before_its_files_are_read(tmp_path, monkeypatch):
    "Not a home folder hashed for hours."
    from gti_nb.assets.base import asset_source

    monkeypatch.chdir(tmp_path)
    for name in (".", str(tmp_path), tmp_path):
        with pytest.raises(GTIError, match="no config.json in it"):
            asset_source(name, "model")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(GTIError, match="a file, expected a folder"):
        asset_source("notes.txt", "model")
    for kind in ("model", "encoder", "data"):
        with pytest.raises(GTIError, match=f"{kind}: got ''"):
            asset_source("", kind)
        with pytest.raises(GTIError, match="nobody-of-this-name"):
            asset_source("~nobody-of-this-name/model", kind)


def test_a_cache_in_the_home_of_nobody_has_a_path(monkeypatch):
    from gti_nb.core.contents import cache_dir

    monkeypatch.setenv("GTI_CACHE", "~nobody-of-this-name/cache")
    assert cache_dir().name == "cache"
