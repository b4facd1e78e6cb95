"assets.trusted: nothing that comes with a model runs, for any answer on the screen, and no call of the package allows it."

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from gti_nb.assets import load_base, refuse_code
from gti_nb.core import GTIError
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds
from gti_nb.text import encode_text

EVIL = "import os, pathlib\npathlib.Path(os.environ['RAN']).touch()\n"
SIDS = SemanticIds(torch.tensor([[0, 1], [1, 0]]), [torch.eye(2), torch.eye(2)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    "A base model, a saved model with new tokens, and a text encoder."
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    place = tmp_path_factory.mktemp("saved")
    model, tokenizer = load_base("tiny-llama")
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    ExtendedModel.extend(model, tokenizer, SIDS).save(place / "extended")
    encoder = SentenceTransformer(modules=[Transformer(str(place / "base"), max_seq_length=64), Pooling(32)], device="cpu")
    encoder.save(str(place / "encoder"))
    return {name: place / name for name in ("base", "extended", "encoder")}


def edit(file: Path, **more) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def auto_map(folder: Path) -> None:
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"}
    edit(folder / "config.json", model_type="mine", auto_map=names)


def auto_map_of_a_known_type(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.M", "AutoModel": "evil.M"})


def tokenizer_map(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})


def elsewhere(folder: Path) -> None:
    (folder / "evil.py").unlink()
    edit(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "org/repo--evil.C", "AutoModelForCausalLM": "org/repo--evil.M"})


def foreign_module(folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]))


def foreign_activation(folder: Path) -> None:
    (folder / "2_Dense").mkdir()
    edit_to = {"in_features": 2, "out_features": 2, "bias": True, "activation_function": "evil.Module"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(edit_to))


def pickled(folder: Path) -> None:
    (folder / "evil.py").unlink()
    for file in folder.rglob("*.safetensors"):
        file.with_name("pytorch_model.bin").write_bytes(b"pickle")
        file.unlink()


TRICKS = [auto_map, auto_map_of_a_known_type, tokenizer_map, elsewhere, pickled]


@pytest.mark.parametrize("trick", [*TRICKS, foreign_module, foreign_activation])
@pytest.mark.parametrize("kind", ["base", "encoder"])
def test_a_folder_with_code_is_refused_before_anything_loads(saved, tmp_path, trick, kind, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(saved[kind], folder)
    (folder / "evil.py").write_text(EVIL)
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    trick(folder)
    with pytest.raises(GTIError, match="no code that comes with a model|pickled weights|no \\*.safetensors"):
        load_base(folder) if kind == "base" else encode_text(["a"], folder, cache=False, progress=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("answer", ["y\nyes\n1\n" * 9, ""])
def test_a_saved_model_never_asks(saved, tmp_path, answer):
    folders = []
    for trick in TRICKS:
        folder = tmp_path / trick.__name__
        shutil.copytree(saved["extended"], folder)
        (folder / "evil.py").write_text(EVIL)
        trick(folder)
        record = json.loads((folder / "gti.json").read_text())  # as of an earlier version, without hashes
        (folder / "gti.json").write_text(json.dumps({k: v for k, v in record.items() if k not in ("seal", "files")} | {"schema": 1}))
        folders.append(str(folder))
    code = f"""
from gti_nb.core import GTIError
from gti_nb.model.extended import ExtendedModel
for folder in {folders!r}:
    try:
        ExtendedModel.load(folder)
    except GTIError as e:
        print("refused", e)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=answer, capture_output=True, text=True, env=os.environ | {"RAN": str(tmp_path / "ran")}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == len(TRICKS) and "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_is_harmless_is_loaded(saved, tmp_path):
    shutil.copytree(saved["base"], tmp_path / "base")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"beside safetensors, never opened")
    edit(tmp_path / "base" / "config.json", auto_map={"AutoModelForCausalLM": "modeling_llama.Llama"})  # as the hub has it, without code
    load_base(tmp_path / "base")
    shutil.copytree(saved["encoder"], tmp_path / "encoder")
    (tmp_path / "encoder" / "onnx").mkdir()
    (tmp_path / "encoder" / "onnx" / "openvino_model.bin").write_bytes(b"never opened")
    encode_text(["a"], tmp_path / "encoder", cache=False, progress=False)


def test_an_adapter_is_no_base(saved, tmp_path):
    shutil.copytree(saved["base"], tmp_path / "base")
    (tmp_path / "base" / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else"}')
    with pytest.raises(GTIError, match="names another model that would be loaded"):
        load_base(tmp_path / "base")


def test_a_module_path_stays_in_the_folder(saved, tmp_path):
    shutil.copytree(saved["encoder"], tmp_path / "encoder")
    kept = json.loads((tmp_path / "encoder" / "modules.json").read_text())
    for path in ("../base", "/etc", 3):
        (tmp_path / "encoder" / "modules.json").write_text(json.dumps([kept[0] | {"path": path}]))
        with pytest.raises(GTIError, match="modules.json: got the path"):
            refuse_code(tmp_path / "encoder")


def test_every_call_that_could_run_code_says_no(root):
    told, silent = 0, []
    for file in (root / "gti_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            loads = re.search(r"(Auto(?!Executor)\w+|SentenceTransformer)(\.from_pretrained|\.from_config)?$", name)
            if not loads or name.endswith("for_model"):
                continue
            said = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if "from_config" in name or said.get("trust_remote_code") == "False":
                told += "from_config" not in name
            else:
                silent.append(f"{file.name}: {name}")
    assert not silent and told >= 6


def test_no_version_allowed_runs_code(root):
    """transformers asks only for None, sentence-transformers trusted local folders before 6.0, datasets ran scripts before 4,
    pyarrow before 14.0.1 ran pickles in tables, filelock before 3.20.1 followed links."""
    text = (root / "pyproject.toml").read_text()
    lowest = {"transformers": "5", "sentence-transformers": "6", "datasets": "4", "pyarrow": "14.0.1", "filelock": "3.20.1", "torch": "2.9"}
    for name, bound in lowest.items():
        (found,) = re.findall(rf'"{name}>=([\d.]+)', text)
        assert Version(bound) <= Version(found) <= Version(version(name))
