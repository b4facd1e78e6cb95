"""How long does `gti runs` take on 1,000 run folders, compared with its imports? Prints the ratio.

python benchmarks/runs.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 1000


def make_runs(root: Path) -> None:
    "Run folders as a training leaves them, without the weights."
    parameters = {f"parameter_{k}": k * 1.5 for k in range(40)}
    for i in range(RUNS):
        folder = root / f"study{i % 20}" / f"arm{i}"
        for inner in ("rows", "diagnostics", "figures", "checkpoints/sft"):
            (folder / inner).mkdir(parents=True)
        for name in ("rows/sft.safetensors", "diagnostics/sft.json", "figures/a.html", "losses.json", "metrics.json", "train.ipynb"):
            (folder / name).write_text("x")
        record = {"pipeline": "train", "status": "finished", "key": "0" * 16, "started": "2026-01-01", "seconds": 61.5}
        record |= {"parameters": parameters | {"init": "mean", "seed": i}, "metrics": {"recall@10": 0.1, "ndcg@10": 0.05}}
        (folder / "run.json").write_text(json.dumps(record, indent=1))


def seconds(code: str, *arguments: str) -> float:
    "The shortest of five processes."
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return min(times)


with tempfile.TemporaryDirectory() as folder:
    make_runs(Path(folder))
    imports = seconds("import gti_nb.cli, gti_nb.runs.folder")
    listing = seconds("import sys; from gti_nb.cli import main; sys.exit(main(sys.argv[1:]))", "runs", folder)
print(f"imports {imports:.2f} s, gti runs on {RUNS} folders {listing:.2f} s: {listing / imports:.2f} times the imports")
