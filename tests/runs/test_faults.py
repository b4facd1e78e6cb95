"Full disks, moved clocks, and folders that are not what they should be."

import errno
import json
import os
import subprocess
import sys
import time
import warnings

import nbformat
import nbformat.v4 as v4
import pytest
import torch

from gti_nb.core import GTIError, write_json
from gti_nb.core.locks import this_process
from gti_nb.runs import execute
from gti_nb.runs.execute import run
from gti_nb.runs.folder import read_run, runs
from gti_nb.training.checkpoints import Checkpoints, load_checkpoint, save_checkpoint

GTI = [sys.executable, "-c", "import sys; from gti_nb.cli import main; sys.exit(main())"]


def notebook(folder, *cells):
    parameters = v4.new_code_cell('steps: int = 3  # how many\nout_dir: str = ""  # results')
    parameters.metadata["tags"] = ["parameters"]
    path = folder / "job.ipynb"
    nbformat.write(v4.new_notebook(cells=[parameters, *map(v4.new_code_cell, cells)]), path)
    return path


def full_disk(monkeypatch, when):
    "A disk that is full while `when()`."
    sync = os.fsync

    def full(fd):
        if when():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(fd)

    monkeypatch.setattr("os.fsync", full)


def test_a_disk_that_is_full_for_a_moment_does_not_end_a_run(tmp_path, monkeypatch, capsys):
    "While the notebook works: heartbeats and the executed notebook. At its end: the notebook and the record."
    begun, out = tmp_path / "begun", tmp_path / "out"
    cells = f"import time; from pathlib import Path; Path({str(begun)!r}).touch(); time.sleep(1)", "print('after')"
    monkeypatch.setattr(execute, "HEARTBEAT", 0.2)
    full_disk(monkeypatch, lambda: begun.exists() and time.time() - begun.stat().st_mtime < 3)
    done = run(notebook(tmp_path, *cells), out_dir=out)
    assert done.status == "finished" == read_run(out).status
    executed = nbformat.read(out / "job.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "after\n"
    assert "the disk is full; free some space and try again; the run goes on" in capsys.readouterr().err
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_a_run_whose_last_record_has_no_room_can_be_repeated_at_once(tmp_path, monkeypatch):
    begun = tmp_path / "begun"
    path = notebook(tmp_path, f"from pathlib import Path; Path({str(begun)!r}).touch()")
    with monkeypatch.context() as m:
        for module in ("core.folders", "runs.job"):
            m.setattr(f"gti_nb.{module}.patiently", lambda write: write())  # no minute of waiting
        full_disk(m, begun.exists)
        with pytest.raises(GTIError, match="the disk is full"):
            run(path, out_dir=tmp_path / "out", quiet=True)
    assert list(runs(tmp_path).status) == ["crashed"]  # it is dead, and does not say that it is running
    assert run(path, out_dir=tmp_path / "out", quiet=True).status == "finished"


def test_a_checkpoint_without_room_keeps_the_one_before(tmp_path, monkeypatch):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([w])
    checkpoints = Checkpoints(tmp_path, 1, {"data": "a"})
    save_checkpoint(checkpoints, 1, optimizer)
    with monkeypatch.context() as m:
        full_disk(m, lambda: True)
        with pytest.raises(GTIError, match="the disk is full"):
            save_checkpoint(checkpoints, 2, optimizer)
    assert load_checkpoint(checkpoints, optimizer).step == 1 and [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_training_goes_on_where_a_checkpoint_has_no_room(tmp_path, monkeypatch):
    from gti_nb.training.stage import train_stage
    from gti_nb.training.trainer import StageSettings

    class Parabola(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return ((self.w - x) ** 2).mean()

    def stage(folder):
        model = Parabola()

        def part(step, part, parts):
            return dict(x=torch.full((2,), float(step)), direction="down", share=1.0)

        groups = [dict(params=[model.w], lr=0.1)]
        train_stage(model, part, groups, StageSettings("demo", 6, progress=False), Checkpoints(folder, 1, {"data": "a"}))
        return model.w.detach()

    whole = stage(tmp_path / "whole")
    saves = []
    with monkeypatch.context() as m:
        full_disk(m, lambda: 4 < len(saves + [saves.append(1)]) < 9)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert torch.equal(stage(tmp_path / "full"), whole)
    assert any("no checkpoint was written, the one before it stays and training continues" in str(w.message) for w in said)
    assert (tmp_path / "full" / "step-000006").exists()


def test_a_heartbeat_of_another_host_a_day_ahead_keeps_nobody_out(tmp_path):
    record = this_process() | {"host": "elsewhere", "status": "running", "heartbeat": time.time() + 86400, "key": "x"}
    write_json(tmp_path / "out" / "run.json", record)
    assert list(runs(tmp_path).status) == ["crashed"]
    assert run(notebook(tmp_path, "print(1)"), out_dir=tmp_path / "out", quiet=True).status == "finished"
    assert read_run(tmp_path / "out.crashed-1").record["host"] == "elsewhere"


def test_a_live_run_stays_one_when_the_clock_is_moved(tmp_path):
    path = notebook(tmp_path, "from pathlib import Path; (Path(out_dir)/'begun').touch()\nimport time\nfor _ in range(600): time.sleep(.1)")
    out = tmp_path / "out"
    process = subprocess.Popen([*GTI, "run", str(path), "--out-dir", str(out)], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 60
        while not (out / "begun").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        record = json.loads((out / "run.json").read_text())
        write_json(out / "run.json", record | {"heartbeat": 0, "process_started": "another time"})
        assert list(runs(tmp_path).status) == ["running"]
        with pytest.raises(GTIError, match=f"pid {process.pid}"):
            run(path, out_dir=out, quiet=True)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("text", ['{"status": ', "[]", "[" * 5000, '{"status": "running", "pid": ' + "9" * 5000 + "}", "\x00\xff"])
def test_a_damaged_record_is_set_aside_and_the_run_goes_on(tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text, encoding="latin-1")
    (tmp_path / "out" / "result.txt").write_text("mine")
    with pytest.warns(UserWarning, match="the folder is now out.damaged-1"):
        assert run(notebook(tmp_path, "print(1)"), out_dir=tmp_path / "out", quiet=True).status == "finished"
    assert (tmp_path / "out.damaged-1" / "result.txt").read_text() == "mine"


def test_a_linked_run_folder_is_the_folder_it_leads_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "run")
    done = run(notebook(tmp_path, "print(1)"), out_dir=tmp_path / "out", quiet=True)
    assert done.folder == tmp_path / "disk" / "run" and (tmp_path / "out").is_symlink()
    assert run(notebook(tmp_path, "print(1)"), out_dir=tmp_path / "out", quiet=True).reused


@pytest.mark.parametrize(
    "name, message",
    [
        ("x" * 300, "the folder's name has 300 bytes, allowed are 200"),
        (b"caf\xff", "not UTF-8 text"),
        ("file", "it is a file, expected a folder"),
        ("locked", "locked.lock: a symbolic link"),
    ],
)
@pytest.mark.parametrize("option", ["--out-dir", "-p"])
def test_what_is_no_folder_for_a_run_is_refused_in_one_line(tmp_path, name, message, option):
    (tmp_path / "file").write_text("mine")
    (tmp_path / ".locked.lock").symlink_to(tmp_path / "file")
    path = notebook(tmp_path, "print(1)")
    out = os.fsencode(tmp_path) + b"/" + (name if isinstance(name, bytes) else name.encode())
    given = [b"--out-dir", out] if option == "--out-dir" else [b"-p", b"out_dir", out]
    said = subprocess.run([*map(os.fsencode, GTI), b"run", os.fsencode(path), *given], capture_output=True)
    assert said.returncode == 1 and message.encode() in said.stderr and b"Traceback" not in said.stderr, said.stderr[-1500:]
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".locked.lock", "file", "job.ipynb"]


def test_a_page_that_was_not_written_is_made_when_the_run_is_reused(tmp_path):
    path = notebook(tmp_path, "print('said')")
    done = run(path, out_dir=tmp_path / "out", quiet=True)
    (done.folder / ".checkpoints.999999-0123abcd.trash").mkdir()
    again = run(path, out_dir=tmp_path / "out", html=True, quiet=True)
    assert again.reused and "said" in (done.folder / "job.html").read_text()
    assert not [p for p in done.folder.iterdir() if p.name.startswith(".")]
