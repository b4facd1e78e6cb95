"What every test may use: where the project is, and a tiny finished run."
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: drives a real JupyterLab in headless Chromium")


@pytest.fixture(scope="session")
def root() -> Path: return ROOT
