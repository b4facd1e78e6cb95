"Fine-tuning: what it reads, and what it moves."

import numpy as np
import pytest
import torch

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.batches import example_batches
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.examples import TaskSettings
from gti_nb.sft.stage import finetune, stage_batches
from gti_nb.sft.tasks import make_tasks
from gti_nb.sid.codes import SemanticIds

SIDS = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))


def test_a_split_stands_for_the_task_retrieval(split):
    "Losses and weights are the same, whether a split or its batches are passed."
    config, ends = SFTConfig(steps=6, batch_size=4, window=5, seed=2, precision="fp32"), []
    for given in (
        lambda _: split,
        lambda extended: example_batches(
            make_tasks("retrieval", extended, split=split, settings=TaskSettings(window=5)), steps=6, batch_size=4, seed=2
        ),
    ):
        extended = ExtendedModel.extend(*load_base("tiny-llama"), SIDS)
        result = finetune(extended, given(extended), config, progress=False)
        ends.append(([(r["direction"], r["loss"]) for r in result.losses], extended.pretrained_hash()))
    assert ends[0] == ends[1] and {direction for direction, _ in ends[0][0]} == {"retrieval"}


def test_held_out_items_of_a_user_never_train(split):
    "Every window is a run of consecutive training items of one user, and no longer than the settings say."
    extended = ExtendedModel.extend(*load_base("tiny-llama"), SIDS)
    item_of = {tuple(codes): item for item, codes in enumerate(extended.token_ids.tolist())}
    runs = {tuple(s[a:b].tolist()) for s in split.train for a in range(len(s)) for b in range(a + 1, min(a + 5, len(s)) + 1)}
    for batch in stage_batches(extended, split, SFTConfig(steps=30, batch_size=4, window=5)):
        for example in batch:
            assert tuple(item_of[tuple(codes)] for codes in example.ids[example.scored].reshape(-1, 2).tolist()) in runs


@pytest.mark.parametrize("pretrained_rows", ["frozen", "trained"])
def test_pretrained_rows_move_only_by_choice(pretrained_rows, split):
    extended = ExtendedModel.extend(*load_base("tiny-llama-untied"), SIDS)
    rows, layers = extended.pretrained_hash(backbone=False), extended.pretrained_hash()
    finetune(extended, split, SFTConfig(steps=3, batch_size=4, window=5, pretrained_rows=pretrained_rows, precision="fp32"), progress=False)
    assert (extended.pretrained_hash(backbone=False) == rows) == (pretrained_rows == "frozen")
    assert extended.pretrained_hash() != layers
    assert not extended.model.training


def test_bf16_learns_what_fp32_learns(split):
    ends = {}
    for precision in ("fp32", "bf16"):
        extended = ExtendedModel.extend(*load_base("tiny-llama"), SIDS)
        result = finetune(
            extended,
            split,
            SFTConfig(steps=40, batch_size=8, window=6, learning_rate=3e-3, learning_rate_new=2e-2, precision=precision),
            progress=False,
        )
        losses = [r["loss"] for r in result.losses]
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
        ends[precision] = np.mean(losses[-5:])
    assert abs(ends["bf16"] - ends["fp32"]) < 0.1 * ends["fp32"]


def test_a_diverging_run_stops_and_names_step_and_task(split):
    extended = ExtendedModel.extend(*load_base("tiny-llama"), SIDS)
    extended.new_rows.data[:] = float("inf")
    with pytest.raises(GTIError, match="step 0, retrieval: the loss is nan"):
        finetune(extended, split, SFTConfig(steps=2, precision="fp32"), progress=False)
