"One arm over two processes that torchrun starts, against one process."

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import safetensors.torch
import torch

from gti_nb.arm import train_arm
from gti_nb.core import GTIError
from gti_nb.identity import run_key
from gti_nb.runs.processes import check_devices, train_in_processes
from gti_nb.settings import arm_config
from gti_nb.tokenize import tokenize

TINY = dict(
    base="tiny-llama",
    precision="fp32",
    device="cpu",
    sft_steps=3,
    sft_batch_size=4,
    sft_window=5,
    evaluation_history=4,
    evaluation_users=7,  # not a multiple of two
    grounding_steps=2,
    grounding_batch_size=4,
    save_steps=2,
    grounding={"full": {"steps": 3, "batch_size": 4}},
    sft={"eval_steps": 2},
    evaluation={"valid_users": 5},
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    torch.set_num_threads(1)
    return tokenize("toy", tmp_path_factory.mktemp("tokens") / "toy", levels=2, codes=8, progress=False)


def test_two_processes_give_the_tables_of_one(tokens, tmp_path):
    "All three training stages, evaluations during fine-tuning, and the last evaluation."
    one = train_arm(tokens, arm_config(**TINY), tmp_path / "one", progress=False)
    two = train_in_processes(tokens.folder, TINY | {"processes": 2}, tmp_path / "two", progress=False)
    pd.testing.assert_frame_equal(one.per_user, two.per_user)
    pd.testing.assert_frame_equal(one.evaluation.per_user_sid, two.evaluation.per_user_sid)
    assert one.metrics == two.metrics and one.evaluation.lists == two.evaluation.lists and one.facts == two.facts
    assert [r["stage"] for r in one.losses] == [r["stage"] for r in two.losses]
    assert [r["loss"] for r in two.losses] == pytest.approx([r["loss"] for r in one.losses], abs=1e-5)
    assert two.validation["best_step"] == one.validation["best_step"]
    for stage in ("init", "grounding", "grounding_full", "sft"):
        first, second = (safetensors.torch.load_file(tmp_path / n / "rows" / f"{stage}.safetensors") for n in ("one", "two"))
        for name in first:
            assert (first[name] - second[name]).abs().max() < 1e-5, (stage, name)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(p.name for p in (tmp_path / "two").iterdir())


START = """
import sys, json
from gti_nb.runs.processes import train_in_processes
train_in_processes(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], progress=False)
"""


def test_a_killed_process_is_named_once_and_a_killed_parent_leaves_nobody(tokens, tmp_path):
    long = TINY | {"processes": 2, "sft_steps": 2000, "grounding": {}, "grounding_steps": 0, "save_steps": 10}
    command = [sys.executable, "-c", START, str(tokens.folder), json.dumps(long), str(tmp_path / "out")]

    def started():
        parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 120
        while not list((tmp_path / "out").glob("checkpoints/sft/checkpoints/step-*")):
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.1)
        below = psutil.Process(parent.pid).children(recursive=True)
        return parent, below, [p for p in below if p.environ().get("RANK") == "1"]

    parent, below, second = started()
    os.kill(second[0].pid, signal.SIGKILL)
    _, said = parent.communicate(timeout=90)
    assert said.count("GTIError:") == 1 and "processes: number 2 of 2 was ended by signal 9" in said.splitlines()[-1]
    parent, below, _ = started()  # and continues from the checkpoint
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(below, timeout=30)[1] == []


def test_what_does_not_fit_is_refused_before_any_work():
    for wrong, message in [
        (dict(processes=0), "processes: got 0"),
        (dict(processes=8), r"processes: a batch of 4 examples \(sft\) cannot be cut into 8 parts"),
        (dict(processes=2, sft={"gradient_accumulation_steps": 3}), "cannot be cut into 6 parts"),
        (dict(processes=1, sft={"fsdp": True}), "fsdp: .*set processes too"),
    ]:
        with pytest.raises(GTIError, match=message):
            arm_config(**TINY | {"grounding_steps": 0, "grounding": {}, "sft": {}} | wrong)
    with pytest.raises(GTIError, match="is one device, and 2 processes need one each"):
        check_devices(arm_config(**TINY | {"device": "cpu:0"}), 2)


def test_the_number_of_processes_is_no_part_of_what_is_computed():
    assert run_key("train", {"seed": 0, "processes": 1}, {}) == run_key("train", {"seed": 0, "processes": 2}, {})
    assert run_key("mine", {"processes": 1}, {}) != run_key("mine", {"processes": 2}, {})
