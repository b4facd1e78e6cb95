"core: what a process that dies, a full disk and another process do to files and hashes."

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from gti_nb import core
from gti_nb.core import GTIError, atomic_dir, content_hash, file_hash, read_json, write_atomic, write_json


def test_import_loads_neither_torch_nor_numpy():
    code = "import sys, gti_nb.core; print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_content_hash_is_the_same_in_every_process():
    code = "import numpy as np; from gti_nb.core import content_hash; print(content_hash({'a': {'x', }.pop(), 'b': [1, 2.5, None, True]}, np.arange(4)))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": s}
        ).stdout
        for s in ("1", "2")
    }
    assert seen == {content_hash({"b": [1, 2.5, None, True], "a": "x"}, np.arange(4)) + "\n"}


@pytest.mark.parametrize(
    "change",
    [lambda a: a.astype(np.int32), lambda a: a.reshape(2, 2), lambda a: a + np.array([0, 0, 0, 1]), lambda a: a.tolist(), lambda a: a[:3]],
)
def test_content_hash_sees_every_change(change):
    a = np.arange(4)
    assert content_hash(change(a)) != content_hash(a)


def test_disk_full_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    write_json(tmp_path / "report.json", {"run": 1})

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(core.os, "fsync", full)
    with pytest.raises(GTIError, match="report.json: the disk is full"):
        write_json(tmp_path / "report.json", {"run": 2})
    monkeypatch.undo()
    assert read_json(tmp_path / "report.json") == {"run": 1} and [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_file_over_the_limit_of_the_process(tmp_path):
    code = f"import resource; from gti_nb.core import write_atomic\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\nwrite_atomic({str(tmp_path / 'x')!r}, b'0' * 5000)"
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
