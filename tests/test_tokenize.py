"The folder of tokens: reused, never overwritten, never half written."
import json
import numpy as np
import pytest
import torch
from gti_nb.core import GTIError
from gti_nb.sid import tokenize as module
from gti_nb.sid.tokenize import load_tokens, tokenize

SETTINGS = dict(levels=2, codes=8, progress=False)


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    "Stands in for the text encoder and counts its calls; what it returns depends on the texts only."
    calls = []
    def encode(texts, **kwargs):
        calls.append(len(texts))
        rows = [np.random.default_rng(list(t.encode())).normal(size=16) for t in texts]
        return torch.nn.functional.normalize(torch.tensor(np.stack(rows), dtype=torch.float32), dim=1)
    monkeypatch.setattr(module, "encode_text", encode)
    return calls


def test_second_call_reuses_and_says_so(tmp_path, encoder, capsys):
    folder = tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    tokenize("toy", out_dir=tmp_path / "t", **{**SETTINGS, "progress": True})
    assert "reusing" in capsys.readouterr().out
    assert len(encoder) == 1 and before == {f: f.stat().st_mtime_ns for f in folder.rglob("*")}


@pytest.mark.parametrize("change", [dict(codes=6), dict(levels=3), dict(seed=1), dict(collisions="none"), dict(encoder="another")])
def test_other_settings_are_refused_and_named(tmp_path, change):
    tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    with pytest.raises(GTIError, match=f"{next(iter(change))}: .* now"): tokenize("toy", out_dir=tmp_path / "t", **{**SETTINGS, **change})


def test_a_changed_local_encoder_is_another_key(tmp_path):
    (tmp_path / "encoder").mkdir(); (tmp_path / "encoder" / "weights").write_text("one")
    tokenize("toy", encoder=tmp_path / "encoder", out_dir=tmp_path / "t", **SETTINGS)
    (tmp_path / "encoder" / "weights").write_text("two")
    with pytest.raises(GTIError, match="the encoder or its version changed"): tokenize("toy", encoder=tmp_path / "encoder", out_dir=tmp_path / "t", **SETTINGS)


def test_same_inputs_same_codes_in_two_folders(tmp_path):
    (_, v1, s1), (_, v2, s2) = (load_tokens(tokenize("toy", out_dir=tmp_path / n, **SETTINGS)) for n in "ab")
    assert s1.content_hash == s2.content_hash and torch.equal(v1, v2)


def test_report_says_how_it_came_to_be(tmp_path):
    report = json.loads((tokenize("toy", out_dir=tmp_path / "t", **SETTINGS) / "report.json").read_text())
    dataset, vectors, sids = load_tokens(tmp_path / "t")
    assert report["sids"]["items"] == dataset.n_items == len(vectors) == sids.n_items
    assert report["sids"]["policy"] == "extra_level" and report["sids"]["collision_excess"] == 0
    assert report["quantizer"]["residual_energy"][-1] == pytest.approx(sids.residual_energy(vectors)[1])


@pytest.mark.parametrize("wrong, message", [
    (dict(collisions="extra-level"), "did you mean 'extra_level'"), (dict(codes=64), "got 64 for 40 items"), (dict(levels=0), "levels: got 0")])
def test_wrong_settings_are_refused_before_encoding(tmp_path, encoder, wrong, message):
    with pytest.raises(GTIError, match=message): tokenize("toy", out_dir=tmp_path / "t", **{**SETTINGS, **wrong})
    assert encoder == [] and not (tmp_path / "t").exists()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs): raise GTIError("the disk is full")
    monkeypatch.setattr(module.SemanticIds, "save", fail)
    with pytest.raises(GTIError, match="disk is full"): tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "t").mkdir(); (tmp_path / "t" / "thesis.tex").write_text("important")
    with pytest.raises(GTIError, match="not empty"): tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    assert [f.name for f in (tmp_path / "t").iterdir()] == ["thesis.tex"]


def test_mixed_or_damaged_folders_are_refused(tmp_path):
    a, b = (tokenize("toy", out_dir=tmp_path / n, **{**SETTINGS, "seed": s}) for s, n in enumerate("ab"))
    (a / "sids" / "sids.json").write_bytes((b / "sids" / "sids.json").read_bytes())
    (a / "sids" / "sids.safetensors").write_bytes((b / "sids" / "sids.safetensors").read_bytes())
    with pytest.raises(GTIError, match="not of one run"): load_tokens(a)
    (b / "vectors.safetensors").write_bytes((b / "vectors.safetensors").read_bytes()[:-1])
    with pytest.raises(GTIError, match="damaged"): load_tokens(b)
