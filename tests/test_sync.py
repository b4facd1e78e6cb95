"Export, clean and README change nothing: what is committed is what the notebooks say. All of it on a copy of the project."

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

SKIP = {".git", ".venv", "outputs", "build", "dist", "_proc", "_docs", "__pycache__", ".ipynb_checkpoints", ".pytest_cache"}


def project_files(root: Path) -> list[Path]:
    "What git tracks or would track; outside a git checkout, everything but environments and outputs."
    if (root / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-zco", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        return [Path(p) for p in listed.split("\0") if p and (root / p).is_file()]
    return [p.relative_to(root) for p in sorted(root.rglob("*")) if p.is_file() and not SKIP & set(p.relative_to(root).parts)]


@pytest.fixture
def copy(root, tmp_path) -> Path:
    for path in project_files(root):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, tmp_path / path)
    return tmp_path


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not SKIP & set(p.relative_to(folder).parts)
    }


def changed_by(folder: Path, *command: str) -> list[str]:
    "Files of the folder that the command changes, adds or removes."
    before = hashes(folder)
    # the copy comes first on the path, so that nothing of the checkout is looked at
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    after = hashes(folder)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


COMMANDS = dict(export=[tool("nbdev_export")], clean=[tool("nbdev_clean")], pages=[sys.executable, ".ci/build_pages.py"])


@pytest.mark.parametrize("step", COMMANDS)
def test_changes_nothing(copy, step):
    assert changed_by(copy, *COMMANDS[step]) == [], "out of date: run `make clean` and look at the differences"


PLANTED = [("export", "gti_nb/core/files.py"), ("clean", "nbs/00_core/03_files.ipynb"), ("pages", "README.md"), ("pages", "docs/rooms.md")]


@pytest.mark.parametrize("step, file", PLANTED)
def test_the_check_sees_a_change(copy, step, file):
    if step == "clean":
        nb = json.loads((copy / file).read_text())
        nb["cells"][-1]["metadata"] = {"collapsed": True}
        (copy / file).write_text(json.dumps(nb, indent=1) + "\n")
    else:
        with (copy / file).open("a") as f:
            f.write("\n# edited by hand\n")
    assert file in changed_by(copy, *COMMANDS[step])


def test_no_notebook_carries_widget_state_or_an_error(root):
    for path in project_files(root):
        if path.suffix == ".ipynb":
            nb = json.loads((root / path).read_text())
            assert "widgets" not in nb["metadata"], path
            outputs = [o for c in nb["cells"] for o in c.get("outputs", [])]
            assert not [o for o in outputs if o["output_type"] == "error"], path
            assert (root / path).stat().st_size < 1_000_000, path
