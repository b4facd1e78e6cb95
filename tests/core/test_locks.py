"core.locks: who works in a folder, told by the lock and the process, never by a clock."

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gti_nb.core import GTIError
from gti_nb.core.locks import hold_folder, is_working, lock_folder, release_folder, run_folder, this_process


@pytest.fixture
def holder(tmp_path):
    "A process that holds `tmp_path / run`."
    code = (
        "import sys, time; from gti_nb.core.locks import hold_folder, run_folder\n"
        "hold_folder(run_folder(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_live_run_is_live_whatever_its_record_and_the_clocks_say(tmp_path, holder):
    for record in ({}, {"host": "elsewhere", "heartbeat": 0}, this_process() | {"process_started": "moved"}, {"pid": -1}):
        assert is_working(tmp_path / "run", record)
    with pytest.raises(GTIError, match=f"pid {holder.pid}"):
        hold_folder(run_folder(tmp_path / "run"))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for record in ({}, this_process(), {"host": "elsewhere", "heartbeat": time.time() + 86400}):
        assert not is_working(tmp_path / "run", record)
    with lock_folder(tmp_path / "run"):
        assert is_working(tmp_path / "run", {})


def test_two_names_of_one_folder_have_one_lock(tmp_path, holder):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(GTIError, match=f"pid {holder.pid}"):
        hold_folder(run_folder(tmp_path / "link"))


def test_without_a_lock_file_the_process_is_looked_up(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(this_process() | {"status": "running"}))
    assert is_working(tmp_path / "run", this_process())
    assert not is_working(tmp_path / "run", this_process() | {"process_started": "another start:1"})
    with pytest.raises(GTIError, match="is working in this run folder"):
        hold_folder(run_folder(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["link", "dangling", "hardlink", "file", "folder", "pipe"])
def test_a_lock_file_that_is_something_else_is_left_alone(tmp_path, kind):
    lock, mine = tmp_path / ".run.lock", tmp_path / "mine.txt"
    mine.write_text("years of work\n")
    if kind == "link":
        lock.symlink_to(mine)
    elif kind == "dangling":
        lock.symlink_to(tmp_path / "new.txt")
    elif kind == "hardlink":
        os.link(mine, lock)
    elif kind == "file":
        lock.write_text("a diary")
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(GTIError, match="run.lock"):
        hold_folder(run_folder(tmp_path / "run"))
    assert mine.read_text() == "years of work\n" and not (tmp_path / "new.txt").exists()
    assert kind != "file" or lock.read_text() == "a diary"
    assert not is_working(tmp_path / "run", {})


@pytest.mark.parametrize(
    "name, message",
    [
        ("x" * 300, "the folder's name has 300 bytes"),
        ("日" * 80, "the folder's name has 240 bytes"),
        ("x" * 201, "allowed are 200"),
        ("a/" + "y" * 256 + "/b", "too long for the file system"),
        (os.fsdecode(b"caf\xff"), "bytes that are no text"),
        (os.fsdecode(b"caf\xff") + "/run", "bytes that are no text"),
        ("nul\0", "bytes that are no text"),
        ("notes.txt", "it is a file, expected a folder"),
        ("notes.txt/run", "a part of the path is a file"),
        ("circle", "symbolic link"),
    ],
)
def test_names_that_are_no_folder_for_a_run(tmp_path, name, message):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(GTIError, match=message):
        with lock_folder(f"{tmp_path}/{name}"):
            pytest.fail("the block must not run")
    assert (tmp_path / "notes.txt").read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_root_of_the_file_system_is_no_run_folder():
    with pytest.raises(GTIError, match="the root of the file system"):
        run_folder("/")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
@pytest.mark.parametrize("mode, where", [(0o000, "run"), (0o000, "deeper/run"), (0o555, "deeper/run")])
def test_folders_that_cannot_be_entered_or_written(tmp_path, mode, where):
    code = """
import os, sys
from gti_nb.core import GTIError
from gti_nb.core.locks import is_working, lock_folder
os.seteuid(65534)
try:
    with lock_folder(sys.argv[1]): print("entered")
except GTIError as e:
    print(e)
print(is_working(sys.argv[1], {}))
"""
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    folder = tmp_path / where.split("/")[0]
    folder.mkdir(mode=0o755)
    folder.chmod(mode)
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path / where)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    refused, working = said.stdout.strip().split("\n")
    assert "permission denied; choose another folder" in refused and working == "False"


def test_a_look_does_not_keep_anybody_out(tmp_path):
    for _ in range(50):
        with lock_folder(tmp_path / "run"):
            pass
        assert not is_working(tmp_path / "run", {})
    hold_folder(run_folder(tmp_path / "run"))
    with pytest.raises(GTIError, match="another process"):
        hold_folder(run_folder(tmp_path / "run"))
    release_folder(run_folder(tmp_path / "run"))
