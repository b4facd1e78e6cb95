"An arm that is stopped after, between and inside its stages continues where it was and ends with the same numbers."

import errno
import os

import pytest
import torch

from gti_nb import arm
from gti_nb.arm import train_arm
from gti_nb.core import GTIError
from gti_nb.core.locks import lock_folder
from gti_nb.result import ArmResult
from gti_nb.settings import arm_config
from gti_nb.tokenize import tokenize
from gti_nb.training.trainer import StageTrainer

TINY = dict(
    base="tiny-llama",
    precision="fp32",
    device="cpu",
    sft_steps=3,
    sft_batch_size=4,
    sft_window=5,
    evaluation_history=4,
    evaluation_users=6,
    grounding_steps=2,
    grounding_batch_size=4,
    save_steps=2,
    grounding={"full": {"steps": 3, "batch_size": 4}},
)


class Stopped(BaseException):
    "As Ctrl-C, or the end of the process, where this line is reached."


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    torch.set_num_threads(1)
    return tokenize("toy", tmp_path_factory.mktemp("tokens") / "toy", levels=2, codes=8, progress=False)


@pytest.fixture(scope="module")
def whole(tokens):
    return train_arm(tokens, arm_config(**TINY), progress=False)


@pytest.fixture
def steps(monkeypatch):
    "Counts the training steps of all stages."
    counted = []
    step = StageTrainer.training_step

    def counting(self, *args, **kwargs):
        counted.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", counting)
    return counted


def stop_at(monkeypatch, name, after=False):
    "Stop the arm when it calls one of its functions, or when that returns."
    function = getattr(arm, name)

    def stopping(*args, **kwargs):
        if after:
            function(*args, **kwargs)
        raise Stopped

    monkeypatch.setattr(arm, name, stopping)


def assert_same(result, whole):
    assert result.metrics == whole.metrics and result.losses == whole.losses and result.heldout == whole.heldout
    for stage, diagnosis in whole.diagnostics.items():
        assert result.diagnostics[stage].numbers == pytest.approx(diagnosis.numbers, nan_ok=True)


@pytest.mark.parametrize(
    "name, after, left",
    [
        ("ground", True, 6),  # grounded, nothing of it said yet
        ("ground_full", False, 6),
        ("ground_full", True, 3),
        ("finetune", True, 0),
        ("evaluate", False, 0),
        ("evaluate", True, 0),
        ("finish_checkpoints", False, 0),
    ],
)
def test_every_stage_continues(tokens, whole, steps, tmp_path, monkeypatch, name, after, left):
    with monkeypatch.context() as m:
        stop_at(m, name, after)
        with pytest.raises(Stopped):
            train_arm(tokens, arm_config(**TINY), tmp_path / "arm", progress=False)
    steps.clear()
    result = train_arm(tokens, arm_config(**TINY), tmp_path / "arm", progress=False)
    assert len(steps) == left
    assert_same(ArmResult.load(tmp_path / "arm") if name == "finish_checkpoints" else result, whole)
    assert not (tmp_path / "arm" / "checkpoints").exists()


@pytest.mark.parametrize("at", [2, 5, 8])  # in grounding, in its second stage, in fine-tuning
def test_a_stop_inside_a_stage(tokens, whole, tmp_path, monkeypatch, at):
    step, done = StageTrainer.training_step, []

    def stopping(self, *args, **kwargs):
        done.append(at)
        if len(done) == at:
            raise Stopped
        return step(self, *args, **kwargs)

    with monkeypatch.context() as m:
        m.setattr(StageTrainer, "training_step", stopping)
        with pytest.raises(Stopped):
            train_arm(tokens, arm_config(**TINY), tmp_path / "arm", progress=False)
    assert_same(train_arm(tokens, arm_config(**TINY), tmp_path / "arm", progress=False), whole)


def test_a_saved_model_comes_with_the_result_or_not_at_all(tokens, tmp_path, monkeypatch):
    config = arm_config(**TINY | {"save_model": True, "grounding_steps": 0, "grounding": {}})
    for name, after in (("save_model", True), ("_settle", False)):  # the model, or also the result, is written
        with monkeypatch.context() as m:
            stop_at(m, name, after)
            with pytest.raises(Stopped):
                train_arm(tokens, config, tmp_path / "arm", progress=False)
        assert not (tmp_path / "arm" / "model").exists()
    train_arm(tokens, config, tmp_path / "arm", progress=False)
    assert (tmp_path / "arm" / "model" / "README.md").exists() and not (tmp_path / "arm" / "checkpoints").exists()
    os.rename(tmp_path / "arm" / "model", tmp_path / "mine")
    (tmp_path / "other" / "model").mkdir(parents=True)
    with pytest.raises(GTIError, match="in the place of the model"):
        train_arm(tokens, config, tmp_path / "other", progress=False)


def test_another_arm_or_another_process_is_refused_before_any_training(tokens, steps, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        stop_at(m, "finetune")
        with pytest.raises(Stopped):
            train_arm(tokens, arm_config(**TINY), tmp_path / "arm", progress=False)
    steps.clear()
    with pytest.raises(GTIError, match="init: 'mean' there, 'zero' here|seed: 0 there, 1 here"):
        train_arm(tokens, arm_config(**TINY, seed=1), tmp_path / "arm", progress=False)
    with pytest.raises(GTIError, match="learning_rate"):  # of grounding, whose result is not taken for another's
        train_arm(tokens, arm_config(**TINY, grounding_learning_rate=0.5), tmp_path / "arm", progress=False)
    with lock_folder(tmp_path / "free"):
        train_arm(tokens, arm_config(**TINY), tmp_path / "free", progress=False)  # this process holds it
    assert len(steps) == 8


def test_a_disk_that_is_full_for_a_moment_costs_no_stage(tokens, whole, tmp_path, monkeypatch):
    sync, refused, last = os.fsync, [], []

    def full(fd):
        if len(last) < 2 and len(refused) < 2 * (len(last) + 1):  # twice in the first stage, twice at the end
            refused.append(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(fd)

    keep = arm.write_json

    def kept(*args):
        with monkeypatch.context() as m:
            m.setattr(os, "fsync", full)
            keep(*args)

    save = ArmResult.save

    def saved(self, folder):
        last.append(folder)
        with monkeypatch.context() as m:
            m.setattr(os, "fsync", full)
            return save(self, folder)

    monkeypatch.setattr(arm, "write_json", kept)
    monkeypatch.setattr(ArmResult, "save", saved)
    assert_same(train_arm(tokens, arm_config(**TINY), tmp_path / "arm", progress=False), whole)
    assert len(refused) >= 3 and ArmResult.load(tmp_path / "arm").metrics == whole.metrics
