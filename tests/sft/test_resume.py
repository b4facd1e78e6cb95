"Fine-tuning killed and resumed, and on several processes."

import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from sft_models import config, mixed, shaped, weights
from transformers import TrainerCallback

from gti_nb.core import GTIError
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.stage import finetune

# ---- killed, and several processes

STAGE = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from safetensors.torch import save_file
from transformers import TrainerCallback
from gti_nb.assets import load_base
from gti_nb.data.dataset import load_dataset
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.batches import example_batches
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.stage import finetune
from gti_nb.sft.tasks import make_tasks
from gti_nb.sft.validation import validation_loss
from gti_nb.sid.codes import SemanticIds
STEPS = 7
class Kill(TrainerCallback):
    def __init__(self, at): self.at = at
    def on_step_end(self, args, state, control, **kw):  # after the weights moved, before the checkpoint of this step
        if state.global_step == self.at: os.kill(os.getpid(), signal.SIGKILL)
toy = load_dataset("toy")
sids = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))
def stage(out, killed_at=-1, **settings):
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    initialize(extended, "normal_matched")
    batches = example_batches(make_tasks(["retrieval", "item2index"], extended, toy, toy.leave_one_out()), steps=STEPS, batch_size=4)
    config = SFTConfig(steps=STEPS, batch_size=4, learning_rate=1e-3, precision="fp32", save_steps=1, eval_steps=3, **settings)
    validate = validation_loss(extended, batches[6])
    result = finetune(extended, batches, config, out_dir=out, validate=validate, callbacks=[Kill(killed_at)], progress=False)
    state = {n: p.detach().contiguous() for n, p in extended.model.named_parameters()}
    state["losses"] = torch.tensor([r["loss"] for r in result.losses], dtype=torch.float64)
    state["curve"] = torch.tensor([value["loss"] for value in result.heldout["curve"]], dtype=torch.float64)
    if int(os.environ.get("RANK", 0)) == 0: save_file(state, f"{out}.safetensors")
    return result
"""
KILLED = (
    STAGE
    + """
def killed(out, at, **settings):
    if (pid := os.fork()) == 0: stage(out, at, **settings); os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])
for name, settings in dict(full={}, lora=dict(mode="lora", lora_dropout=0.1, gradient_accumulation_steps=2)).items():
    out = Path(sys.argv[1])/name
    stage(f"{out}-whole", **settings)
    for at in range(1, STEPS + 1):
        assert killed(out, at, **settings) == signal.SIGKILL, at
    result = stage(out, **settings)
    assert result.resumed == [dict(step=STEPS - 1, exact=True)], result.resumed
    assert not (out/"checkpoints").exists()
"""
)


def run(tmp_path, script, *args, launcher=()):
    (tmp_path / "stage.py").write_text(script)
    done = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "stage.py"), *map(str, args)],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def state(path):
    return safetensors.torch.load_file(path)


def test_killed_in_every_step_and_resumed_gives_the_same_bits(tmp_path):
    run(tmp_path, KILLED, tmp_path)
    for name in ("full", "lora"):
        whole, killed = state(tmp_path / f"{name}-whole.safetensors"), state(tmp_path / f"{name}.safetensors")
        assert whole.keys() == killed.keys() and all(torch.equal(whole[n], killed[n]) for n in whole)


def test_a_run_that_stopped_early_stays_stopped(split, tmp_path, monkeypatch):
    "Killed between its last step and its files, it does not train past the end."

    def killed(*_):
        raise RuntimeError("killed")

    def run(extended, **kw):
        settings = config(steps=12, eval_steps=1, early_stopping_patience=2, save_steps=1)
        return finetune(extended, split, settings, out_dir=tmp_path, progress=False, **kw)

    monkeypatch.setattr(ExtendedModel, "save_rows", killed)
    values = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    first = shaped("llama")
    with pytest.raises(RuntimeError, match="killed"):
        run(first, validate=lambda: {"loss": next(values)})
    monkeypatch.undo()
    again = shaped("llama")
    result = run(again, validate=lambda: {"loss": next(values)})
    assert (
        len(result.losses) == 4
        and result.heldout["best_step"] == 2
        and all(torch.equal(p, weights(first)[n]) for n, p in weights(again).items())
    )


def test_other_data_settings_or_weights_are_refused(toy, split, tmp_path):
    class Dies(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 3:
                raise RuntimeError("dead")

    def go(extended, data, callbacks=(), **kw):
        return finetune(extended, data, config(save_steps=1, **kw), out_dir=tmp_path, callbacks=callbacks, progress=False)

    with pytest.raises(RuntimeError, match="dead"):
        go(shaped("llama"), split, [Dies()])
    with pytest.raises(GTIError, match="setting learning_rate: 0.003 there, 0.1 here"):
        go(shaped("llama"), split, learning_rate=0.1)
    with pytest.raises(GTIError, match="data: "):
        go(shaped("llama"), mixed(shaped("llama"), toy, split))
    with pytest.raises(GTIError, match="start: "):
        go(shaped("llama", init="mean"), split)
    moved = shaped("llama")
    next(iter(moved.backbone_parameters())).data += 1
    with pytest.raises(GTIError, match="weights: .*set force=True"):
        go(moved, split)
    assert go(shaped("llama"), split, gradient_accumulation_steps=2).resumed[0]["step"] == 2


SHARDED = (
    STAGE
    + """
class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kw):
        if state.global_step == 4 and args.process_index == 1: signal.raise_signal(signal.SIGINT)
def again(out, **settings):
    "One process is interrupted in its fourth step; both save it, stop, and resume from there."
    global Kill
    kill, Kill = Kill, lambda at: Stop()
    try: stage(out, fsdp=True, **settings)
    except KeyboardInterrupt: pass
    else: raise AssertionError("it did not stop")
    Kill = kill
    return stage(out, fsdp=True, **settings)
runs = dict(
    full={},
    lora=dict(mode="lora", lora_dropout=0.0, gradient_accumulation_steps=2),
    rows=dict(pretrained_rows="trained", gradient_checkpointing=True),
)
for name, settings in runs.items():
    sharded = int(os.environ.get("WORLD_SIZE", 1)) > 1
    result = again(f"{sys.argv[1]}-{name}", **settings) if sharded else stage(f"{sys.argv[1]}-{name}", **settings)
    assert result.resumed == ([dict(step=4, exact=True)] if sharded else []), result.resumed
if sharded: torch.distributed.barrier(); torch.distributed.destroy_process_group()
"""
)

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def assert_same_weights(tmp_path, *names):
    "One process and two, after torchrun with gloo: the same weights, losses and validation."
    for name in names:
        one, two = state(tmp_path / f"one{name}.safetensors"), state(tmp_path / f"two{name}.safetensors")
        assert one.keys() == two.keys()
        for n in one:
            assert (one[n] - two[n]).abs().max() < 1e-5, (name, n)


def test_two_processes_learn_what_one_does(tmp_path):
    run(tmp_path, STAGE + "stage(sys.argv[1])", tmp_path / "one")
    run(tmp_path, STAGE + "stage(sys.argv[1])", tmp_path / "two", launcher=TWO)
    assert_same_weights(tmp_path, "")


def test_a_model_sharded_over_two_processes_learns_what_a_whole_one_does_even_when_interrupted(tmp_path):
    run(tmp_path, SHARDED, tmp_path / "one")
    run(tmp_path, SHARDED, tmp_path / "two", launcher=TWO)
    assert_same_weights(tmp_path, "-full", "-lora", "-rows")


def test_sharding_needs_several_processes(split):
    with pytest.raises(GTIError, match="fsdp: .*but there is one; start them with torchrun"):
        finetune(shaped("llama"), split, config(fsdp=True), progress=False)
    with pytest.raises(GTIError, match="fsdp: 4-bit layers cannot be sharded"):
        config(fsdp=True, mode="qlora")


@pytest.mark.parametrize("change", [{}, dict(gradient_accumulation_steps=3), dict(packing=300), dict(gradient_checkpointing=True)])
def test_a_resumed_run_is_called_exact_only_if_it_is_computed_in_the_same_way(change, split, tmp_path):
    class Dies(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 3:
                raise RuntimeError("dead")

    with pytest.raises(RuntimeError, match="dead"):
        finetune(shaped("llama"), split, config(save_steps=1), out_dir=tmp_path, callbacks=[Dies()], progress=False)
    assert finetune(shaped("llama"), split, config(save_steps=1, **change), out_dir=tmp_path, progress=False).resumed == [
        dict(step=2, exact=not change)
    ]
