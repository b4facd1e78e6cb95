"Fine-tuning as a stage: families of models, parts of a step, validation, and what can go wrong."

import resource
import subprocess

import numpy as np
import pytest
import torch
from sft_models import SHAPES, SIDS, assert_close, config, mixed, shaped, weights
from transformers import TrainerCallback

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.evaluate.model import user_set, validation
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.prompts import retrieval_head
from gti_nb.sft.config import preset
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.stage import finetune

# ---- the steps


@pytest.mark.parametrize("name", SHAPES)
def test_families_learn_with_frozen_pretrained_rows(name, toy, split):
    extended = shaped(name)
    rows = extended.pretrained_hash(backbone=False)
    result = finetune(
        extended, mixed(extended, toy, split, steps=25), config(steps=25, batch_size=6, learning_rate_new=2e-2), progress=False
    )
    losses = [r["loss"] for r in result.losses]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4]) and extended.pretrained_hash(backbone=False) == rows
    assert set(result.losses[0]["tasks"]) <= {"retrieval", "item2index", "fusion_sid_to_title"} and any(
        r["direction"] == "mixed" for r in result.losses
    )


SAME = {
    "parts": dict(gradient_accumulation_steps=3),
    "checkpointing": dict(gradient_checkpointing=True),
    "packing": dict(packing=300),
    "all": dict(gradient_accumulation_steps=2, gradient_checkpointing=True, packing=300),
}


@pytest.mark.parametrize("how", SAME)
@pytest.mark.parametrize("pretrained_rows", ["frozen", "trained"])
def test_the_way_a_step_is_computed_does_not_change_the_weights(how, pretrained_rows, toy, split):
    ends = []
    for kw in ({}, SAME[how]):
        extended = shaped("llama-untied")
        result = finetune(
            extended, mixed(extended, toy, split), config(pretrained_rows=pretrained_rows, learning_rate=1e-3, **kw), progress=False
        )
        ends.append((weights(extended), [r["loss"] for r in result.losses], [r["tasks"] for r in result.losses]))
    assert ends[1][1] == pytest.approx(ends[0][1], abs=1e-5)
    for a, b in zip(ends[0][2], ends[1][2], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert_close(ends[1][0], ends[0][0], atol=2e-4)


def test_gradient_checkpointing_is_on_while_training_and_off_after(toy, split):
    extended, seen = shaped("llama"), []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            seen.append(extended.model.model.layers[0].gradient_checkpointing)

    finetune(extended, split, config(gradient_checkpointing=True), callbacks=[Look()], progress=False)
    assert seen == [True] * 4 and not extended.model.model.layers[0].gradient_checkpointing


def test_losses_of_tasks_average_to_the_loss(toy, split):
    extended = shaped("llama")
    batches = mixed(extended, toy, split)
    result = finetune(extended, batches, config(), progress=False)
    for record, batch in zip(result.losses, batches, strict=True):
        n = {t: sum(int(e.scored.sum()) for e in batch if e.task == t) for t in record["tasks"]}
        assert sum(record["tasks"][t] * n[t] for t in n) / sum(n.values()) == pytest.approx(record["loss"], abs=1e-5)


def test_weight_decay_moves_matrices_alone(split):
    ends = []
    for decay in (0.0, 5.0):
        extended = shaped("llama")
        finetune(extended, split, config(steps=1, learning_rate=1e-2, warmup_steps=0, weight_decay=decay), progress=False)
        ends.append(weights(extended))
    moved = {n for n in ends[0] if not torch.equal(ends[0][n], ends[1][n])}
    assert moved == {n for n in ends[0] if "proj" in n}


@pytest.mark.parametrize("start", ["mean", "rows", "folder"])
def test_fine_tuning_can_start_from_a_trained_model_a_folder_or_rows(start, split, tmp_path):
    first = shaped("llama", init="mean")
    if start == "rows":
        first.new_rows.data.normal_(std=0.2)
        first.save_rows(tmp_path / "grounding.safetensors")
    finetune(first, split, config(steps=2), progress=False)
    if start == "folder":
        first.save(tmp_path / "model")
        first = ExtendedModel.load(tmp_path / "model")
    if start == "rows":
        first = shaped("llama", init="mean")
        first.load_rows(tmp_path / "grounding.safetensors")
    assert all(np.isfinite(r["loss"]) for r in finetune(first, split, config(steps=2), progress=False).losses)


def test_half_precision_weights_are_not_trained_in_full(split):
    extended = shaped("llama")
    extended.model.to(torch.bfloat16)
    with pytest.raises(GTIError, match="must be fp32"):
        finetune(extended, split, config(), progress=False)


# ---- validation


def test_the_best_weights_stay_and_the_stage_ends_early(split):
    extended, kept, values = shaped("llama"), [], iter([0.1, 0.4, 0.3, 0.2, 0.9])

    def validate():
        assert not extended.model.training
        kept.append(weights(extended))
        return {"ndcg@10": next(values), "loss": 1.0}

    result = finetune(extended, split, config(steps=20, eval_steps=2, early_stopping_patience=2), validate=validate, progress=False)
    assert (
        len(result.losses) == 8
        and result.heldout["best_step"] == 4
        and [value["step"] for value in result.heldout["curve"]] == [2, 4, 6, 8]
    )
    assert all(torch.equal(p, kept[1][n]) for n, p in weights(extended).items())


def test_the_lowest_loss_is_the_best_and_the_last_step_is_evaluated(split):
    values = [3.0, 2.0, 2.5]
    left = iter(values)
    result = finetune(shaped("llama"), split, config(steps=5, eval_steps=2), validate=lambda: {"loss": next(left)}, progress=False)
    assert [value["step"] for value in result.heldout["curve"]] == [2, 4, 5] and result.heldout["best_step"] == 4
    left = iter(values)
    result = finetune(
        shaped("llama"), split, config(steps=5, eval_steps=2, greater_is_better=True), validate=lambda: {"loss": next(left)}, progress=False
    )
    assert result.heldout["best_step"] == 2
    with pytest.raises(GTIError, match="allowed: 'loss'"):
        finetune(shaped("llama"), split, config(eval_steps=2, metric_for_best_model="ndcg"), validate=lambda: {"loss": 1.0}, progress=False)
    with pytest.raises(GTIError, match="step 2: validation gave"):
        finetune(shaped("llama"), split, config(eval_steps=2), validate=lambda: {"loss": float("nan")}, progress=False)


def test_a_ranking_decides_when_to_stop(split):
    "Validation by NDCG@10 of lists decoded for twelve users; the weights of the best evaluation are kept."
    extended = ExtendedModel.extend(*load_base("tiny-llama"), SIDS)
    initialize(extended, "normal_matched")
    ranks = validation(extended, user_set(extended, split, "valid", n=12), beams=10)
    settings = config(steps=80, batch_size=8, window=6, learning_rate_new=2e-2, warmup_steps=10, eval_steps=10, early_stopping_patience=2)
    result = finetune(extended, split, settings, validate=ranks, progress=False)
    curve = [value["ndcg@10"] for value in result.heldout["curve"]]
    assert ranks()["ndcg@10"] == max(curve) and len(result.losses) < 80
    assert result.heldout["best_step"] == 10 * (1 + curve.index(max(curve)))


# ---- what can go wrong


def test_a_nan_gradient_stops_before_the_weights_move(split):
    extended = shaped("llama")

    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, **kw):
            if state.global_step == 2:
                extended.backbone_parameters()[0].register_hook(lambda g: g * float("nan"))
                self.before = weights(extended)

    spoil = Spoil()
    with pytest.raises(GTIError, match="step 2, retrieval: a gradient is not a number"):
        finetune(extended, split, config(), callbacks=[spoil], progress=False)
    assert all(torch.equal(p, spoil.before[n]) for n, p in weights(extended).items())


def test_a_nan_loss_leaves_the_last_good_checkpoint(split, tmp_path):
    class Spoil(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kw):
            if state.global_step == 3:
                next(iter(model.parameters())).data.fill_(float("nan"))

    with pytest.raises(GTIError, match="step 3, retrieval: the loss is nan"):
        finetune(shaped("llama"), split, config(save_steps=1), out_dir=tmp_path, callbacks=[Spoil()], progress=False)
    whole, resumed = shaped("llama"), shaped("llama")
    finetune(whole, split, config(save_steps=1), progress=False)
    result = finetune(resumed, split, config(save_steps=1), out_dir=tmp_path, progress=False)
    assert result.resumed[0]["step"] == 3 and all(torch.equal(p, weights(whole)[n]) for n, p in weights(resumed).items())


def test_a_full_disk_is_reported_and_costs_no_checkpoint(split, tmp_path):
    "No file may grow beyond a few kilobytes from the third step on."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kw):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    try:
        with pytest.raises(GTIError, match="larger than this process may write"):
            finetune(shaped("llama"), split, config(save_steps=1), out_dir=tmp_path, callbacks=[Fill()], progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert finetune(shaped("llama"), split, config(save_steps=1), out_dir=tmp_path, progress=False).resumed == [dict(step=2, exact=True)]


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_disk_that_is_full_at_the_end_costs_no_step(mode, split, tmp_path):
    "The last checkpoint was written but the rows were not; the next call resumes from it."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(TrainerCallback):
        def on_train_end(self, args, state, control, **kw):
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))

    try:
        with pytest.raises(GTIError, match="larger than this process may write"):
            finetune(shaped("llama"), split, config(save_steps=2, mode=mode), out_dir=tmp_path, callbacks=[Fill()], progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]
    assert finetune(shaped("llama"), split, config(save_steps=2, mode=mode), out_dir=tmp_path, progress=False).resumed == [
        dict(step=4, exact=True)
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "sft.safetensors"][mode == "full" :]


def test_no_space_left_is_reported_and_costs_a_checkpoint_only(split, tmp_path):
    "A file system of its own, too small for a second checkpoint."
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.warns(UserWarning, match="step 2: no checkpoint was written.*the disk is full; free some space"):
            found = finetune(shaped("llama"), split, config(save_steps=1), out_dir=place / "run", progress=False)
        assert [p.name for p in (place / "run").iterdir()] == ["sft.safetensors"], "a checkpoint or a temporary folder is left"
    finally:
        subprocess.run(["umount", str(place)], check=True)
    undisturbed = finetune(shaped("llama"), split, config(save_steps=1), progress=False)
    assert [r["loss"] for r in found.losses] == [r["loss"] for r in undisturbed.losses]


def test_memory_that_runs_out_is_reported_with_sizes(split, monkeypatch):
    def full(self, *args, **kw):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTLoss, "forward", full)
    monkeypatch.setattr("gti_nb.sft.stage.check_loss", lambda *_: None)
    with pytest.raises(
        GTIError, match=r"out of memory \(step 0: 6 examples, [\d,]+ tokens with padding.*MB\).*raise gradient_accumulation_steps"
    ):
        finetune(shaped("llama"), split, config(), progress=False)


@pytest.mark.parametrize("name, says", [("tensorboard", "tensorboard"), ("nosuch", "not supported")])
def test_missing_trackers_are_refused_before_any_work(name, says, split, tmp_path):
    if name == "tensorboard" and any(__import__("importlib.util").util.find_spec(m) for m in ("tensorboard", "tensorboardX")):
        pytest.skip("tensorboard is installed")
    extended = shaped("llama")
    before = extended.pretrained_hash()
    with pytest.raises(GTIError, match=f"report_to: got {name!r}.*{says}"):
        finetune(extended, split, config(report_to=name), out_dir=tmp_path, progress=False)
    assert extended.pretrained_hash() == before


def test_a_window_longer_than_the_positions_is_refused(split):
    extended = shaped("llama")
    extended.model.config.max_position_embeddings = limit = len(retrieval_head(extended)) + 6
    with pytest.raises(GTIError, match=f"the model reads {limit}; set window to 3 or less"):
        finetune(extended, split, config(), progress=False)
    assert len(finetune(extended, split, config(window=3), progress=False).losses) == 4


def test_qlora_is_refused_without_a_gpu(split):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(GTIError, match="needs a CUDA GPU, the model is on cpu.*mode='lora'"):
        finetune(shaped("llama"), split, preset("paper", steps=2, batch_size=2), progress=False)


# ---- trackers, and the record of a resumed run


class Heard(TrainerCallback):
    "A tracker that keeps what was logged, by step."

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kw):
        self.logs.append((state.global_step, set(logs)))


def test_trackers_get_the_loss_of_every_step_every_task_and_every_evaluation(toy, split, tmp_path, monkeypatch):
    heard, extended = Heard(), shaped("llama")
    monkeypatch.setattr("gti_nb.training.stage.get_reporting_integration_callbacks", lambda *_: [])
    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda *_: [])
    finetune(
        extended,
        mixed(extended, toy, split, steps=6),
        config(steps=6, eval_steps=2, report_to="tensorboard"),
        out_dir=tmp_path,
        validate=lambda: dict(loss=1.0),
        callbacks=[heard],
        progress=False,
    )

    def steps(name):
        return [step for step, names in heard.logs if name in names]

    assert steps("loss") == [1, 2, 3, 4, 5, 6] and steps("eval_loss") == [2, 4, 6], heard.logs
    assert steps("loss/item2index"), heard.logs


def test_a_validation_without_numbers_is_named(split):
    with pytest.raises(GTIError, match="validation gave None; expected a number by name"):
        finetune(shaped("llama"), split, config(eval_steps=1), validate=lambda: None, progress=False)
