"What every test may use: where the project is, and a tiny study made by the real pipelines."

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny_outputs(tmp_path_factory) -> Path:
    "An outputs folder that holds the tiny study: both arms finished, and the report."
    outputs = tmp_path_factory.mktemp("outputs")
    done = subprocess.run(
        [Path(sys.executable).with_name("gti"), "study", str(ROOT / "studies/tiny.yaml"), "--out-dir", str(outputs)],
        cwd=outputs,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return outputs
