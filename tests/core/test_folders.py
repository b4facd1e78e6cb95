"core.folders: attempts are set aside whole, and what they left is found again."

import os
import subprocess
import sys

import pytest

from gti_nb.core import GTIError, read_json, write_json
from gti_nb.core.folders import (
    claim_checkpoints,
    clear_finished,
    finish_checkpoints,
    finish_folder,
    is_free,
    patiently,
    remove_folder,
    set_aside,
    start_folder,
    sweep,
)

RUNNING = {"status": "running", "key": "a1", "started": "2026-01-01T00:00:00"}


def checkpoint(folder, step):
    write_json(folder / "checkpoints" / f"step-{step}" / "state.json", {"step": step})


def test_checkpoints_are_found_in_any_attempt_at_the_same_run(tmp_path):
    run = tmp_path / "run[1]"
    start_folder(run, RUNNING)
    checkpoint(run, 1)
    set_aside(run, "crashed")  # and killed here: the folder is missing
    start_folder(run, RUNNING | {"key": "another"})
    assert not (run / "checkpoints").exists()
    set_aside(run, "failed")
    start_folder(run, RUNNING | {"started": "2026-01-02T00:00:00"})
    assert (run / "checkpoints" / "step-1").exists() and not (tmp_path / "run[1].crashed-1" / "checkpoints").exists()
    set_aside(run, "crashed")
    write_json(run / "run.json", RUNNING)  # killed between the record and the renaming
    start_folder(run, RUNNING)
    assert (run / "checkpoints" / "step-1").exists()


def test_only_an_attempt_at_the_same_run_gives_its_checkpoints_away(tmp_path):
    for name, record in [
        ("run.failed-1", RUNNING | {"key": "b"}),
        ("run.failed-2", RUNNING | {"key": None}),
        ("run.failed-3", RUNNING | {"status": "finished"}),
        ("run.v2-1", RUNNING),
        ("other.failed-1", RUNNING),
    ]:
        write_json(tmp_path / name / "run.json", record)
        checkpoint(tmp_path / name, 1)
    (tmp_path / "run.failed-4").mkdir()
    (tmp_path / "run.failed-4" / "run.json").write_text("[" * 5000)
    checkpoint(tmp_path / "run.failed-4", 1)
    start_folder(tmp_path / "run", RUNNING)
    assert not (tmp_path / "run" / "checkpoints").exists() and len(list(tmp_path.glob("*/checkpoints"))) == 6


def test_tokens_and_the_checkpoints_of_a_quantizer_move_too(tmp_path):
    run = tmp_path / "run"
    start_folder(run, RUNNING)
    for name in ("tokens", ".tokens.0123", "checkpoints", "rows"):
        (run / name).mkdir()
    (run / "prompts.json").touch()  # the date of the prompts, which another day would not change
    set_aside(run, "crashed")
    start_folder(run, RUNNING)
    assert sorted(p.name for p in run.iterdir()) == [".tokens.0123", "checkpoints", "prompts.json", "run.json", "tokens"]
    assert sorted(p.name for p in (tmp_path / "run.crashed-1").iterdir()) == ["rows", "run.json"]


def test_the_name_of_an_attempt_is_never_taken_from_a_record(tmp_path):
    (tmp_path / "run").mkdir()
    assert set_aside(tmp_path / "run", "../../elsewhere").name == "run.damaged-1"


def test_what_a_killed_beginning_left_is_no_obstacle_and_files_are(tmp_path):
    run = tmp_path / "run"
    assert is_free(run)
    (run / "checkpoints").mkdir(parents=True)
    (run / "parameters.json").write_text("{}")
    (run / ".run.json.999999-0123abcd.tmp").touch()
    assert is_free(run)
    (run / "train.ipynb").touch()
    assert not is_free(run) and is_free(run, notebooks=True)
    (run / "thesis.tex").touch()
    assert not is_free(run, notebooks=True)


def test_checkpoints_of_a_stage_stay_until_the_whole_is_finished(tmp_path):
    stage = tmp_path / "checkpoints" / "sft"
    checkpoint(stage, 4)
    claim_checkpoints(tmp_path / "checkpoints", {"seed": 0})
    finish_checkpoints(stage / "checkpoints")
    assert (stage / "checkpoints" / "step-4").exists()
    write_json(tmp_path / "run.json", RUNNING)
    finish_checkpoints(tmp_path / "checkpoints")
    assert (stage / "checkpoints" / "step-4").exists()
    finish_folder(tmp_path, RUNNING | {"status": "finished"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["files.json", "run.json"]


def test_a_folder_called_checkpoints_further_up_is_none_of_ours(tmp_path):
    out = tmp_path / "checkpoints" / "arm"
    checkpoint(out, 4)
    finish_checkpoints(out / "checkpoints")
    assert not (out / "checkpoints").exists() and out.exists()


def test_checkpoints_that_nobody_claimed_belong_to_the_notebook(tmp_path):
    checkpoint(tmp_path, 1)
    write_json(tmp_path / "run.json", RUNNING | {"status": "finished"})
    clear_finished(tmp_path)
    assert (tmp_path / "checkpoints" / "step-1").exists()


def test_checkpoints_of_another_arm_are_refused(tmp_path):
    claim_checkpoints(tmp_path / "checkpoints", {"init": "mean", "seed": 0})
    claim_checkpoints(tmp_path / "checkpoints", {"init": "mean", "seed": 0})
    with pytest.raises(GTIError, match="seed: 0 there, 1 here"):
        claim_checkpoints(tmp_path / "checkpoints", {"init": "mean", "seed": 1})


def test_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "a").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "scratch")
    remove_folder(tmp_path / "run" / "checkpoints")
    remove_folder(tmp_path / "run" / "checkpoints")  # which is not there
    assert list((tmp_path / "run").iterdir()) == [] and (tmp_path / "scratch" / "a").exists()


def test_leftovers_of_ended_processes_are_swept_and_others_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f".step-000001.{ended.pid}-0123abcd.tmp", f".checkpoints.{ended.pid}-0123abcd.trash"]
    kept = [f".step-000001.{os.getpid()}-0123abcd.tmp", ".mine.tmp", "step-000001.tmp"]
    for name in names + kept:
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    sweep(tmp_path / "missing")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_a_record_waits_for_room_on_the_disk(tmp_path, monkeypatch):
    import errno

    tries = []

    def full(fd):
        tries.append(fd)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    patiently(lambda: write_json(tmp_path / "run.json", {"status": "finished"}))
    assert len(tries) == 3 and read_json(tmp_path / "run.json") == {"status": "finished"}
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(GTIError, match="the disk is full"):
        patiently(lambda: write_json(tmp_path / "run.json", {}), seconds=0)
    assert read_json(tmp_path / "run.json") == {"status": "finished"}
