"core.files: what a process that dies, a full disk and another process do to files."

import errno
import os
import signal
import subprocess
import sys

import pytest

from gti_nb.core import GTIError, atomic_dir, file_hash, read_json, write_atomic, write_json


def test_import_loads_neither_torch_nor_numpy():
    code = "import sys, gti_nb.core; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_disk_full_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    write_json(tmp_path / "report.json", {"run": 1})

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(GTIError, match="report.json: the disk is full"):
        write_json(tmp_path / "report.json", {"run": 2})
    monkeypatch.undo()
    assert read_json(tmp_path / "report.json") == {"run": 1} and [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_file_over_the_limit_of_the_process(tmp_path):
    code = f"""
import resource
from gti_nb.core import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_atomic({str(tmp_path / "x")!r}, b"0" * 5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "GTIError" in done.stderr and "larger than this process may write" in done.stderr
    assert not any(tmp_path.iterdir())


def test_kill_in_the_middle_of_a_folder_leaves_the_old_one(tmp_path):
    with atomic_dir(tmp_path / "result") as d:
        write_atomic(d / "a", "old")
    code = f"""
import os, signal
from gti_nb.core import atomic_dir, write_atomic
with atomic_dir({str(tmp_path / "result")!r}, replace=True) as d:
    write_atomic(d/"a", "new"); os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / "result" / "a").read_text() == "old"


def test_atomic_dir_never_takes_a_folder_in_use(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(GTIError, match="not empty"):
        with atomic_dir(tmp_path / "mine"):
            pytest.fail("the block must not run")
    with atomic_dir(tmp_path / "empty") as d:
        (d / "a").write_text("1")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work" and sorted(p.name for p in tmp_path.iterdir()) == [
        "empty",
        "mine",
    ]


def test_file_hash(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(GTIError, match="no such file"):
        file_hash(tmp_path / "y")


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").write_text("x")
    assert write_atomic(tmp_path / "ours", "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
