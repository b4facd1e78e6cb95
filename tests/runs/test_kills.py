"A run is killed before every system call that changes a file or a folder, and continues from every point."

import os
import subprocess
import sys

import pytest

LIFE = r"""
import json, os, shutil, signal, sys, threading
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import torch

torch.set_num_threads(1)
from gti_nb.core import write_atomic, write_json
from gti_nb.core.folders import claim_checkpoints, finish_checkpoints
from gti_nb.runs import execute, folder as runs_folder
from gti_nb.training.checkpoints import Checkpoints, load_checkpoint, restore_random, save_checkpoint

root = Path(sys.argv[1])
said = os.open(root / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # what happened, outside of what is tested
cell = v4.new_code_cell('out_dir: str = ""  # results')
cell.metadata["tags"] = ["parameters"]
nbformat.write(v4.new_notebook(cells=[cell]), root / "job.ipynb")


def say(*words):
    os.write(said, (" ".join(map(str, words)) + "\n").encode())


def work(out):
    "Three steps with a checkpoint after each, then the results."
    claim_checkpoints(out / "checkpoints", {"seed": 0})
    torch.manual_seed(0)
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([w], lr=0.1)
    checkpoints = Checkpoints(out / "checkpoints" / "sft" / "checkpoints", 1, {"data": "a"})
    there = load_checkpoint(checkpoints, optimizer)
    if there is not None:
        restore_random(there.tensors)
    say("from", 0 if there is None else there.step)
    for step in range(0 if there is None else there.step, 3):
        optimizer.zero_grad()
        (w * torch.randn(3)).sum().backward()
        optimizer.step()
        save_checkpoint(checkpoints, step + 1, optimizer, last=step == 2)
        say("saved", step + 1)
    finish_checkpoints(checkpoints.folder)
    write_json(out / "metrics.json", {"w": w.tolist()})
    finish_checkpoints(out / "checkpoints")


class Job:
    "In place of a notebook in a kernel: the same work, at once."

    def __init__(self, notebook, output, values, progress_file):
        self.output, self.ended = output, threading.Event()

    def start(self):
        work(self.output.parent)
        write_json(self.output.parent / "facts.json", {"tokens_dir": "here"})
        write_atomic(self.output, "{}")
        self.ended.set()

    def is_alive(self):
        return False


execute.NotebookJob, execute.failure_of = Job, lambda job: None
execute.environment = runs_folder.environment = dict


def by_gti():
    run = execute.run(root / "job.ipynb", out_dir=root / "out", quiet=True)
    say("reused" if run.reused else "ran")


def by_hand():
    out = runs_folder.begin_run(root / "out", "job", {})
    work(out)
    runs_folder.record_facts(out, "job", {}, tokens_dir="here")
    say("ran")


KINDS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "fcntl.flock", "ctypes.dlsym"}


def killed_at(at, life):
    "Live in another process that is killed before its call number `at`; whether it was."
    if (pid := os.fork()) == 0:
        calls = 0

        def before(event, details):
            nonlocal calls
            reads = event == "open" and not (details[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if event in KINDS and not reads and str(details[0]) != "/dev/null":
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sync = os.fsync
        os.fsync = lambda fd: (before("os.link", [fd]), sync(fd))[1]  # the system announces no fsync to hooks
        sys.addaudithook(before)
        try:
            life()
        except BaseException as e:
            say("error", repr(e))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def check(life, at):
    "What the next attempt finds and does."
    before = (root / "said").read_text().split("\n")
    record = json.loads((root / "out" / "run.json").read_text()) if (root / "out" / "run.json").exists() else {}
    done = record.get("status") == "finished"
    metrics = (root / "out" / "metrics.json").read_bytes() if done else None
    if not (done and life is by_hand):  # which is refused
        assert not killed_at(0, life)
    after = (root / "said").read_text().split("\n")[len(before) - 1:]
    text = f"{at}: {before} then {after}"
    assert not any(line.startswith("error") for line in before + after), text
    if done:
        assert life is by_hand or after[0] == "reused", text
        assert (root / "out" / "metrics.json").read_bytes() == metrics, text
    else:
        saved = max([int(line.split()[1]) for line in before if line.startswith("saved")], default=0)
        assert int(after[0].split()[1]) >= saved, text
    record = json.loads((root / "out" / "run.json").read_text())
    assert record["status"] == "finished" and record["tokens_dir"] == "here", text
    left = [p for p in root.rglob("*") if p.name.endswith((".tmp", ".trash")) and "out." not in str(p)]
    assert (done and life is by_hand) or not left and not (root / "out" / "checkpoints").exists(), (text, left)
    return json.loads((root / "out" / "metrics.json").read_text())["w"]


def clear():
    for path in root.glob("*out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.truncate(root / "said", 0)


life = dict(gti=by_gti, hand=by_hand)[sys.argv[2]]
earlier = int(sys.argv[3])  # at which call an attempt before was killed; 0: there was none
life()  # once in this process, so that those it forks find everything imported
runs_folder.release_folder(root / "out")
whole, points, at = json.loads((root / "out" / "metrics.json").read_text())["w"], 0, 0
while True:
    clear()
    at += 1
    if earlier:
        assert killed_at(earlier, life)
    if not killed_at(at, life):
        break
    points += 1
    assert check(life, at) == whole, at
print(points)
"""


@pytest.mark.parametrize("life, earlier", [("gti", 0), ("gti", 35), ("hand", 35)])
def test_a_run_continues_from_every_point_at_which_it_can_be_killed(tmp_path, life, earlier):
    (tmp_path / "life.py").write_text(LIFE)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "life.py"), str(tmp_path), life, str(earlier)],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore"),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 40
