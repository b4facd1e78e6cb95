"Benchmarks that nobody runs often still work."

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_of_a_gpu_can_be_made_on_a_cpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not [name for name, values in found.items() if "failed" in values]
    assert found["agreement"]["sft, fp32: gradient, relative difference"] < 1e-5
    assert found["sharding"]["processes"] == 2
    assert all(f"## {name.capitalize()}" in (tmp_path / "gpu.md").read_text() for name in found)


def test_a_missing_gpu_is_named_and_time_that_is_short_skips_parts(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path)]
    refused = subprocess.run([*command, "--device", "cuda:99"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "--device" in refused.stderr
    done = subprocess.run([*command, "--device", "cpu", "--tiny", "--minutes", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {name for name, values in found.items() if "skipped" in values} == set(found) - {"machine"}
