"model.files: a saved model is the bytes that were written, and finite; everything else is refused by name."

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gti_nb.assets import load_base
from gti_nb.core import GTIError, path_hashes, write_sealed
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds

SIDS = SemanticIds(torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0]]), [torch.eye(3), torch.eye(2)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return ExtendedModel.extend(*load_base("tiny-llama"), SIDS).save(tmp_path_factory.mktemp("saved") / "model")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_one_changed_byte_of_any_file_is_refused_by_name(saved, data):
    names = sorted(path_hashes(saved))
    assert {"model.safetensors", "config.json", "tokenizer.json", "sids/sids.json", "gti.json"} <= set(names)
    file = saved / data.draw(st.sampled_from(names))
    content, times = file.read_bytes(), file.stat()
    at = data.draw(st.integers(0, len(content) - 1))
    try:
        file.write_bytes(content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(GTIError, match=file.name):
            ExtendedModel.load(saved)
    finally:
        file.write_bytes(content)


def test_a_missing_file_is_refused_by_name(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "model" / "sids" / "sids.json").unlink()
    with pytest.raises(GTIError, match="sids/sids.json is missing"):
        ExtendedModel.load(tmp_path / "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(saved, tmp_path, value):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((folder / "gti.json").read_text())
    write_sealed(folder / "gti.json", record | {"files": {k: v for k, v in path_hashes(folder).items() if k != "gti.json"}})
    with pytest.raises(GTIError, match="NaN or infinity in model.norm.weight"):
        ExtendedModel.load(folder)


def test_models_of_the_first_schema_are_read(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    record = json.loads((tmp_path / "model" / "gti.json").read_text())
    (tmp_path / "model" / "gti.json").write_text(
        json.dumps({k: v for k, v in record.items() if k not in ("files", "seal")} | {"schema": 1})
    )
    assert torch.equal(ExtendedModel.load(tmp_path / "model").token_ids, ExtendedModel.load(saved).token_ids)
    (tmp_path / "model" / "gti.json").write_text(json.dumps(record | {"schema": 3}))
    with pytest.raises(GTIError, match="schema 3, this version reads 1 and 2"):
        ExtendedModel.load(tmp_path / "model")


def test_saved_rows_are_what_was_written(saved, tmp_path):
    extended = ExtendedModel.load(saved)
    path = extended.save_rows(tmp_path / "rows.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(GTIError, match="its values are not those that were written"):
        extended.load_rows(path)
