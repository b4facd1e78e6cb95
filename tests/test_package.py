"What is true of the package as a whole: light to import, and described once."

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
import tomllib

import pytest

HEAVY = {"torch", "pandas", "transformers", "plotly", "ipywidgets", "papermill", "sklearn", "scipy"}


def loaded_by(statement: str) -> set[str]:
    "Top-level modules in a fresh interpreter after the statement."
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["gti_nb", "gti_nb.core"])
def test_import_is_light(module):
    assert not loaded_by(f"import {module}") & HEAVY


def test_the_probe_sees_heavy_imports():
    assert "pandas" in loaded_by("import pandas")


@pytest.mark.parametrize("room", ["data", "sid", "initializers", "grounding", "sft", "decode", "evaluate", "diagnostics"])
def test_only_the_last_rooms_import_plotly_and_widgets(root, room):
    files = sorted(root.glob(f"gti_nb/{room}.py")) + sorted(root.glob(f"gti_nb/{room}/*.py"))
    assert files, f"gti_nb/{room}: no such room"
    for file in files:
        assert not re.search(r"^\s*(?:import|from) (?:plotly|ipywidgets|papermill)\b", file.read_text(), re.M), file


def test_the_face_loads_its_names_when_they_are_used(root):
    import gti_nb

    assert all(getattr(gti_nb, name) is not None for name in gti_nb.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gti_nb.nothing
    tree = ast.parse((root / "gti_nb/__init__.py").read_text())
    typed = {a.asname: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level for a in node.names}
    assert {name: f"gti_nb.{module}" for name, module in typed.items()} == {
        name: getattr(gti_nb, name).__module__ if hasattr(getattr(gti_nb, name), "__module__") else "gti_nb.initializers.registry"
        for name in gti_nb.__all__
        if name != "__version__"
    }
    assert (root / "gti_nb/py.typed").exists()


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def settings(root):
    ini = configparser.ConfigParser()
    ini.read(root / "settings.ini")
    return ini["DEFAULT"]


def test_metadata_is_the_same_in_both_files(project, settings):
    import gti_nb

    assert project["name"] == settings["lib_name"]
    assert project["description"] == settings["description"]
    assert gti_nb.__version__ == settings["version"] and "version" in project["dynamic"]
    assert project["requires-python"] == f">={settings['min_python']}"
    assert sorted(project["dependencies"]) == sorted(settings["requirements"].split())
    assert sorted(project["optional-dependencies"]["dev"]) == sorted(settings["dev_requirements"].split())
    assert [f"{name}={target}" for name, target in project["scripts"].items()] == settings["console_scripts"].splitlines()
    assert project["keywords"] == settings["keywords"].split()


def test_every_installed_requirement_is_pinned(project, root):
    pins = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#"))

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {normal(name): version for name, version in pins.items()}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = normal(re.match(r"[A-Za-z0-9._-]+", requirement)[0])
        assert name in pinned, f"{requirement}: add a pin to constraints.txt"
        assert importlib.metadata.version(name).partition("+")[0] == pinned[name], f"{name}: .venv and constraints.txt differ"
