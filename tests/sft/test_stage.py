"Fine-tuning as a stage: shapes of models, parts, packing, adapters, validation, interruptions, full disks, several processes."

import copy
import itertools
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, TrainerCallback

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.prompts import retrieval_head, retrieval_prompt
from gti_nb.sft.adapters import add_adapters, load_adapters, merge_adapters
from gti_nb.sft.batches import example_batches
from gti_nb.sft.loss import SFTLoss, check_loss, collate, fed_tokens, packed_rows, shared_groups
from gti_nb.sft.stage import PRESETS, SFTConfig, finetune, preset
from gti_nb.sft.tasks import Example, make_tasks
from gti_nb.sid.codes import SemanticIds

SIDS = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))
SMALL = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=512,
    initializer_range=0.15,
    pad_token_id=0,
)
SHAPES = {  # name -> model type, settings
    "llama": ("llama", dict(tie_word_embeddings=True)),
    "llama-untied": ("llama", dict(tie_word_embeddings=False)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("qwen3", dict(head_dim=8, tie_word_embeddings=True)),
    "qwen3-untied": ("qwen3", dict(head_dim=8, tie_word_embeddings=False)),
    "gemma": ("gemma", dict(head_dim=8)),
    "gemma2-capped": (
        "gemma2",
        dict(head_dim=8, final_logit_softcapping=5.0, attn_logit_softcapping=20.0, query_pre_attn_scalar=8, sliding_window=16),
    ),
    "phi-biased": ("phi", dict(tie_word_embeddings=False)),
    "gpt2": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=512)),
    "gpt2-untied": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4, n_positions=512, tie_word_embeddings=False)),
}


@pytest.fixture(scope="module")
def toy():
    return load_dataset("toy")


@pytest.fixture(scope="module")
def split(toy):
    return toy.leave_one_out()


def shaped(name, init="normal_matched"):
    "A random model of a family, extended."
    family, own = SHAPES[name]
    tokenizer = load_base("tiny-llama")[1]
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **(dict(initializer_range=0.15) if family == "gpt2" else SMALL), **own)
    for dropout in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    if family == "phi":
        torch.nn.init.normal_(model.lm_head.bias)
    extended = ExtendedModel.extend(model, tokenizer, SIDS)
    initialize(extended, init)
    return extended


def mixed(extended, toy, split, steps=4, batch_size=6, seed=0):
    return example_batches(
        make_tasks(["retrieval", "item2index", "fusion_sid_to_title"], extended, toy, split), steps=steps, batch_size=batch_size, seed=seed
    )


def config(**kw):
    return SFTConfig(**dict(dict(steps=4, batch_size=6, learning_rate=3e-3, precision="fp32", warmup_steps=1), **kw))


def weights(extended):
    return {n: p.detach().clone() for n, p in extended.model.named_parameters()}


def assert_close(a, b, atol=2e-5):
    assert a.keys() == b.keys()
    for n in a:
        torch.testing.assert_close(a[n], b[n], atol=atol, rtol=1e-3, msg=lambda m: f"{n}: {m}")


# ---- the loss


@pytest.mark.parametrize("name", SHAPES)
def test_padded_and_packed_losses_and_gradients_are_the_models_own(name, toy, split):
    extended = shaped(name)
    batch = mixed(extended, toy, split)[1]
    extended.train_only(backbone=True)
    results = []
    labels = [torch.tensor(np.where(e.scored, e.ids, -100)[1:]) for e in batch]
    own = sum(
        torch.nn.functional.cross_entropy(extended.model(input_ids=torch.tensor(e.ids)[None]).logits[0, :-1], label, reduction="sum")
        for e, label in zip(batch, labels)
    ) / sum(int(e.scored.sum()) for e in batch)
    for loss in (own, SFTLoss(extended)(batch)[0], SFTLoss(extended, packing=400)(batch)[0]):
        extended.model.zero_grad()
        loss.backward()
        results.append((loss.item(), {n: p.grad.clone() for n, p in extended.model.named_parameters() if p.grad is not None}))
    rows = packed_rows([len(e.ids) for e in batch], 400)
    assert len(rows) < len(batch), "nothing was packed, so nothing was tested"
    for value, grads in results[1:]:
        assert abs(value - results[0][0]) < 1e-5
        assert_close(grads, results[0][1])


def test_an_example_alone_and_in_a_packed_row_have_the_same_loss_per_task(toy, split):
    extended = shaped("llama")
    batch = mixed(extended, toy, split, batch_size=12)[0]
    padded, packed = SFTLoss(extended)(batch)[1], SFTLoss(extended, packing=300)(batch)[1]
    assert padded.keys() == packed.keys() and len(padded) > 1
    for task in padded:
        torch.testing.assert_close(padded[task], packed[task], atol=1e-4, rtol=0)


@pytest.mark.parametrize("room", [1, 20, 64])
def test_rows_hold_every_example_once_and_no_more_than_their_room(room):
    lengths = np.random.default_rng(0).integers(2, 30, 50).tolist()
    rows = packed_rows(lengths, room)
    assert sorted(i for row in rows for i in row) == list(range(50))
    assert max(sum(lengths[i] for i in row) for row in rows) <= max(room, max(lengths))
    examples = [Example("t", np.arange(1, n + 1), np.arange(n) >= 1) for n in lengths]
    ids, positions, target_of = collate(examples, room)
    assert ids.shape[0] * (ids.shape[1] - 1) == fed_tokens(lengths, room)
    assert [(target_of == i).sum().item() for i in range(50)] == [n - 1 for n in lengths]
    assert torch.equal(ids[target_of >= 0], positions[target_of >= 0] + 1), "a token stands at its place in its own example"


# ---- a beginning that many share


def brute_force(lengths, firsts, alike, call):
    "Cost of the best cut of a sorted batch, by trying every one."

    def cost(a, b):
        n, longest, shared = b - a, max(lengths[a:b]), min([*firsts[a:b], *alike[a : b - 1]])
        return min(n * longest + call, shared + n * (longest - shared) + 2 * call)

    n = len(lengths)
    return min(sum(cost(a, b) for a, b in zip([0, *cuts], [*cuts, n])) for k in range(n) for cuts in itertools.combinations(range(1, n), k))


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_every_example_once_share_no_target_and_cost_least(seed):
    rng, call = np.random.default_rng(seed), int(np.random.default_rng(seed).integers(0, 9))
    heads = [rng.integers(0, 9, n) for n in (3, 6, 6)]
    examples = [
        Example("t", np.concatenate([head, rng.integers(0, 3, n)]), np.arange(len(head) + n) >= rng.integers(1, len(head) + 1))
        for head in heads
        for n in rng.integers(1, 5, 3)
    ]
    groups = shared_groups(examples, call)
    assert sorted(i for group, _ in groups for i in group) == list(range(len(examples)))
    for group, shared in groups:
        assert len({tuple(examples[i].ids[:shared].tolist()) for i in group}) == 1
        assert all(shared < len(examples[i].ids) and not examples[i].scored[:shared].any() for i in group)
    order = sorted(examples, key=lambda e: e.ids.tolist())
    alike = [
        next((k for k, (x, y) in enumerate(zip(a.ids, b.ids)) if x != y), min(len(a.ids), len(b.ids))) for a, b in zip(order, order[1:])
    ]
    best = brute_force([len(e.ids) - 1 for e in order], [int(e.scored.argmax()) for e in order], alike, call)
    assert sum(fed_tokens([len(examples[i].ids) for i in group], 0, shared) + call * (1 + bool(shared)) for group, shared in groups) == best


@pytest.mark.parametrize("name", SHAPES)
def test_a_shared_beginning_changes_neither_loss_nor_gradient(name, toy, split):
    extended = shaped(name)
    batch = mixed(extended, toy, split, batch_size=10)[1]
    extended.train_only(backbone=True)
    found = []
    for share in (False, True):
        loss = SFTLoss(extended)
        loss.share, loss.call = share, 1
        extended.model.zero_grad()
        value, tasks = loss(batch)
        value.backward()
        found.append(
            (loss.fed(batch), value.item(), tasks, {n: p.grad.clone() for n, p in extended.model.named_parameters() if p.grad is not None})
        )
    assert found[1][0] < 0.8 * found[0][0] and any(shared for _, shared in loss.groups(batch)), "nothing was shared, so nothing was tested"
    assert abs(found[0][1] - found[1][1]) < 1e-5
    for task in found[0][2]:
        torch.testing.assert_close(found[0][2][task], found[1][2][task], atol=1e-4, rtol=0)
    assert_close(found[1][3], found[0][3])


def test_examples_of_one_token_behind_what_they_share(toy, split):
    extended = shaped("llama")
    batch = [Example("t", np.array([5, 6, 7, n]), np.array([False, False, False, True])) for n in (8, 9, 8)]
    loss = SFTLoss(extended)
    loss.call = 0
    assert loss.groups(batch) == [([0, 2, 1], 3)] and loss.fed(batch) == 3
    alone = SFTLoss(extended)
    alone.share = False
    assert abs(loss(batch)[0].item() - alone(batch)[0].item()) < 1e-6


def test_a_model_that_goes_on_differently_behind_a_beginning_is_read_whole(toy, split):
    extended = shaped("llama")
    batch, loss = mixed(extended, toy, split, batch_size=10)[1], SFTLoss(extended)
    check_loss(loss, batch)
    assert loss.share

    def forgetful(module, args, kwargs):  # loses what was read before
        if kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"] = DynamicCache()
        return args, kwargs

    extended.model.base_model.register_forward_pre_hook(forgetful, with_kwargs=True)
    check_loss(loss, batch)
    assert not loss.share and loss.groups(batch) == [(list(range(10)), 0)]


def test_nothing_is_shared_where_a_beginning_cannot_be_read_ahead(toy, split):
    extended = shaped("llama")
    batch = mixed(extended, toy, split, batch_size=10)[1]
    shares = lambda loss: any(shared for _, shared in loss.groups(batch))
    assert shares(SFTLoss(extended)) and not shares(SFTLoss(extended, packing=300))
    extended.model.gradient_checkpointing_enable()
    assert not shares(SFTLoss(extended))
    extended.model.gradient_checkpointing_disable()
    assert shares(SFTLoss(extended))
    add_adapters(extended, dropout=0.05)
    assert not shares(SFTLoss(extended))


# ---- the steps


@pytest.mark.parametrize("name", SHAPES)
def test_families_learn_with_old_rows_as_they_were(name, toy, split):
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
def test_how_a_step_is_computed_changes_no_weights(how, pretrained_rows, toy, split):
    ends = []
    for kw in ({}, SAME[how]):
        extended = shaped("llama-untied")
        result = finetune(
            extended, mixed(extended, toy, split), config(pretrained_rows=pretrained_rows, learning_rate=1e-3, **kw), progress=False
        )
        ends.append((weights(extended), [r["loss"] for r in result.losses], [r["tasks"] for r in result.losses]))
    assert ends[1][1] == pytest.approx(ends[0][1], abs=1e-5)
    for a, b in zip(ends[0][2], ends[1][2]):
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
def test_any_start_is_a_start(start, split, tmp_path):
    first = shaped("llama")
    if start == "rows":
        first.new_rows.data.normal_(std=0.2)
        first.save_rows(tmp_path / "grounded.safetensors")
    finetune(first, split, config(steps=2), progress=False)
    if start == "folder":
        first.save(tmp_path / "model")
        first = ExtendedModel.load(tmp_path / "model")
    if start == "rows":
        first = shaped("llama")
        first.load_rows(tmp_path / "grounded.safetensors")
    assert all(np.isfinite(r["loss"]) for r in finetune(first, split, config(steps=2), progress=False).losses)


# ---- adapters


@pytest.mark.parametrize("name", ["llama", "qwen3-untied", "gpt2", "phi-biased", "gemma2-capped"])
def test_lora_trains_adapters_and_new_rows_and_leaves_a_plain_model(name, split, tmp_path):
    extended, ids = shaped(name), torch.arange(12)[None]
    before, rows = weights(extended), extended.new_rows.detach().clone()
    result = finetune(extended, split, config(steps=8, mode="lora", lora_r=4, learning_rate=1e-2), out_dir=tmp_path, progress=False)
    after = weights(extended)
    assert after.keys() == before.keys() and np.mean([r["loss"] for r in result.losses[-2:]]) < result.losses[0]["loss"]
    moved = {n for n in after if not torch.equal(after[n], before[n])}
    layers = {n for n in moved if "weight" in n}
    assert (
        not torch.equal(extended.new_rows, rows)
        and layers
        and all(before[n].dim() == 2 for n in layers)
        and not any(n.endswith(("old", "pretrained_bias")) for n in moved)
    )
    for n in layers:
        assert torch.linalg.matrix_rank((after[n] - before[n]).double(), rtol=1e-4) <= 4
    again = shaped(name)
    load_adapters(again, tmp_path / "adapter")
    torch.testing.assert_close(again.model(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(extended.merge()(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3)
    extended.save(tmp_path / "model")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3
    )


def test_lora_with_old_rows_trained(split, tmp_path):
    extended = shaped("llama")
    rows = extended.pretrained_hash(backbone=False)
    finetune(extended, split, config(mode="lora", pretrained_rows="trained"), out_dir=tmp_path, progress=False)
    assert (
        extended.pretrained_hash(backbone=False) != rows and not (tmp_path / "adapter").exists()
    )  # such an adapter would not fit the base model


def test_peft_reads_the_adapter_folder(split, tmp_path):
    from peft import PeftModel

    extended, plain = shaped("llama"), shaped("llama")
    finetune(extended, split, config(mode="lora"), out_dir=tmp_path, progress=False)
    plain.load_rows(tmp_path / "sft.safetensors")
    theirs, ids = PeftModel.from_pretrained(plain.merge(), tmp_path / "adapter"), torch.arange(12)[None]
    torch.testing.assert_close(theirs(ids).logits, extended.model(ids).logits, atol=1e-4, rtol=1e-3)


def test_a_model_with_adapters_inside_is_not_merged():
    extended = shaped("llama")
    add_adapters(extended)
    with pytest.raises(GTIError, match="merge_adapters"):
        extended.merge()
    merge_adapters(extended)
    assert not getattr(extended.merge(), "peft_config", None)


def test_a_failing_lora_run_takes_its_adapters_out(split):
    extended = shaped("llama")
    before = extended.pretrained_hash()

    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        finetune(extended, split, config(mode="lora"), callbacks=[Fails()], progress=False)
    assert extended.pretrained_hash() == before and not any("lora" in n for n, _ in extended.model.named_modules())


def test_adapters_of_another_model_and_damaged_ones_are_refused(split, tmp_path):
    extended = shaped("llama")
    finetune(extended, split, config(mode="lora"), out_dir=tmp_path, progress=False)
    with pytest.raises(GTIError, match="another base model"):
        load_adapters(shaped("gpt2"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(GTIError, match="NaN or Inf"):
        load_adapters(shaped("llama"), tmp_path / "adapter")


def test_half_precision_weights_are_not_trained_whole(split):
    extended = shaped("llama")
    extended.model.to(torch.bfloat16)
    with pytest.raises(GTIError, match="must be fp32"):
        finetune(extended, split, config(), progress=False)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_decode_while_adapters_train_is_that_of_the_merged_model(name, split):
    "The look is taken without the adapters' dropout, which is on again in the next step."
    extended, looks, dropping = shaped(name), [], []
    trie, prompts, gone = (
        SidTrie(SIDS),
        [retrieval_prompt(extended, split.history(u, "valid")) for u in range(8)],
        [split.past(u, "valid") for u in range(8)],
    )

    def validate():
        found, merged = beam_search(extended, prompts, trie, 10, gone), copy.deepcopy(extended)
        merge_adapters(merged)
        assert any("lora_A" in n for n, _ in extended.model.named_parameters()) and not any(
            "lora" in n for n, _ in merged.model.named_parameters()
        )
        looks.append((found, beam_search(merged, prompts, trie, 10, gone)))
        return {"score": found.scores[:, 0].mean().item()}

    class Dropping(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kw):
            dropping.append(all(m.training for n, m in extended.model.named_modules() if "lora_dropout" in n))

    finetune(
        extended,
        split,
        config(steps=6, eval_steps=2, mode="lora", lora_dropout=0.5, learning_rate=2e-2),
        validate=validate,
        callbacks=[Dropping()],
        progress=False,
    )
    for found, merged in looks:
        assert torch.equal(found.items, merged.items)
        torch.testing.assert_close(found.scores, merged.scores, atol=1e-4, rtol=0)
    assert len(looks) == 3 and dropping == [True] * 6 and not torch.equal(looks[0][0].items, looks[2][0].items)


# ---- validation


def test_the_best_weights_stay_and_the_stage_ends_early(split):
    extended, kept, values = shaped("llama"), [], iter([0.1, 0.4, 0.3, 0.2, 0.9])

    def validate():
        assert not extended.model.training
        kept.append(weights(extended))
        return {"ndcg@10": next(values), "loss": 1.0}

    result = finetune(extended, split, config(steps=20, eval_steps=2, early_stopping_patience=2), validate=validate, progress=False)
    assert (
        len(result.losses) == 8 and result.heldout["best_step"] == 4 and [look["step"] for look in result.heldout["curve"]] == [2, 4, 6, 8]
    )
    assert all(torch.equal(p, kept[1][n]) for n, p in weights(extended).items())


def test_losses_are_to_be_small_and_the_last_step_is_looked_at(split):
    values = [3.0, 2.0, 2.5]
    left = iter(values)
    result = finetune(shaped("llama"), split, config(steps=5, eval_steps=2), validate=lambda: {"loss": next(left)}, progress=False)
    assert [look["step"] for look in result.heldout["curve"]] == [2, 4, 5] and result.heldout["best_step"] == 4
    left = iter(values)
    result = finetune(
        shaped("llama"), split, config(steps=5, eval_steps=2, greater_is_better=True), validate=lambda: {"loss": next(left)}, progress=False
    )
    assert result.heldout["best_step"] == 2
    with pytest.raises(GTIError, match="allowed: 'loss'"):
        finetune(shaped("llama"), split, config(eval_steps=2, metric_for_best_model="ndcg"), validate=lambda: {"loss": 1.0}, progress=False)
    with pytest.raises(GTIError, match="step 2: validation gave"):
        finetune(shaped("llama"), split, config(eval_steps=2), validate=lambda: {"loss": float("nan")}, progress=False)


# ---- what can go wrong


def test_a_gradient_that_is_no_number_stops_before_the_weights_move(split):
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


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(split, tmp_path):
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


def test_a_full_disk_is_said_and_costs_no_checkpoint(split, tmp_path):
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
    "The last checkpoint is there, the rows are not; the next call goes on from it."
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


def test_no_space_left_is_said(split, tmp_path):
    "A file system of its own, too small for a checkpoint."
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(GTIError, match="the disk is full; free some space"):
            finetune(shaped("llama"), split, config(save_steps=1), out_dir=place / "run", progress=False)
        assert all(p.name.startswith("step-") for p in (place / "run" / "checkpoints").iterdir()), "a temporary folder is left"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_memory_that_runs_out_is_said_with_sizes(split, monkeypatch):
    def full(self, *args, **kw):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTLoss, "forward", full)
    monkeypatch.setattr("gti_nb.sft.stage.check_loss", lambda *_: None)
    with pytest.raises(
        GTIError, match=r"step 0: out of memory \(6 examples, [\d,]+ tokens with padding.*MB\).*Raise gradient_accumulation_steps"
    ):
        finetune(shaped("llama"), split, config(), progress=False)


@pytest.mark.parametrize("name, says", [("tensorboard", "tensorboard"), ("nosuch", "not supported")])
def test_trackers_that_are_not_there_are_refused_before_any_work(name, says, split, tmp_path):
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


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_configurations(name):
    made = preset(name, examples=1000)
    assert isinstance(made, SFTConfig) and preset(name, steps=7).steps == 7
    assert (made.mode, made.lora_r, made.lora_alpha, made.lora_dropout) == {
        "paper": ("qlora", 8, 32, 0.05),
        "lcrec": ("lora", 8, 32, 0.05),
        "demo": ("full", 8, 32, 0.05),
    }[name]


def test_qlora_is_refused_without_a_gpu(split):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(GTIError, match="needs a CUDA GPU, the model is on cpu.*mode='lora'"):
        finetune(shaped("llama"), split, preset("paper", steps=2, batch_size=2), progress=False)


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
from gti_nb.sft.batches import example_batches
from gti_nb.sft.stage import SFTConfig, finetune
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.tasks import make_tasks
from gti_nb.sid.codes import SemanticIds
from gti_nb.model.extended import ExtendedModel
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
    look = SFTLoss(extended)
    config = SFTConfig(steps=STEPS, batch_size=4, learning_rate=1e-3, precision="fp32", save_steps=1, eval_steps=3, **settings)
    result = finetune(extended, batches, config, out_dir=out, validate=lambda: dict(loss=look(batches[6])[0].item()), callbacks=[Kill(killed_at)], progress=False)
    state = {n: p.detach().contiguous() for n, p in extended.model.named_parameters()}
    state["losses"] = torch.tensor([r["loss"] for r in result.losses], dtype=torch.float64)
    state["looks"] = torch.tensor([look["loss"] for look in result.heldout["curve"]], dtype=torch.float64)
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


def test_a_run_that_had_ended_early_stays_ended(split, tmp_path, monkeypatch):
    "Killed between its last step and what it leaves, it does not go on past the end."
    monkeypatch.setattr("gti_nb.sft.stage._finish", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
    run = lambda extended, **kw: finetune(
        extended, split, config(steps=12, eval_steps=1, early_stopping_patience=2, save_steps=1), out_dir=tmp_path, progress=False, **kw
    )
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

    go = lambda extended, data, callbacks=(), **kw: finetune(
        extended, data, config(save_steps=1, **kw), out_dir=tmp_path, callbacks=callbacks, progress=False
    )
    with pytest.raises(RuntimeError, match="dead"):
        go(shaped("llama"), split, [Dies()])
    with pytest.raises(GTIError, match="setting learning_rate: 0.003 there, 0.1 here"):
        go(shaped("llama"), split, learning_rate=0.1)
    with pytest.raises(GTIError, match="data: "):
        go(shaped("llama"), mixed(shaped("llama"), toy, split))
    with pytest.raises(GTIError, match="start: "):
        go(shaped("llama"), split)
    moved = shaped("llama")
    next(iter(moved.backbone_parameters())).data += 1
    with pytest.raises(GTIError, match="weights: .*force it"):
        go(moved, split)
    assert go(shaped("llama"), split, gradient_accumulation_steps=2).resumed[0]["step"] == 2


SHARDED = (
    STAGE
    + """
class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kw):
        if state.global_step == 4 and args.process_index == 1: signal.raise_signal(signal.SIGINT)
def again(out, **settings):
    "One of the processes is interrupted in its fourth step; both save it and stop, and go on from there."
    global Kill
    kill, Kill = Kill, lambda at: Stop()
    try: stage(out, fsdp=True, **settings)
    except KeyboardInterrupt: pass
    else: raise AssertionError("it went on")
    Kill = kill
    return stage(out, fsdp=True, **settings)
for name, settings in dict(full={}, lora=dict(mode="lora", lora_dropout=0.0, gradient_accumulation_steps=2), old=dict(pretrained_rows="trained", gradient_checkpointing=True)).items():
    sharded = int(os.environ.get("WORLD_SIZE", 1)) > 1
    result = again(f"{sys.argv[1]}-{name}", **settings) if sharded else stage(f"{sys.argv[1]}-{name}", **settings)
    assert result.resumed == ([dict(step=4, exact=True)] if sharded else []), result.resumed
if sharded: torch.distributed.barrier(); torch.distributed.destroy_process_group()
"""
)

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def assert_learned_alike(tmp_path, *names):
    "One process and two, after torchrun with gloo: the same weights, losses and looks."
    for name in names:
        one, two = state(tmp_path / f"one{name}.safetensors"), state(tmp_path / f"two{name}.safetensors")
        assert one.keys() == two.keys()
        for n in one:
            assert (one[n] - two[n]).abs().max() < 1e-5, (name, n)


def test_two_processes_learn_what_one_does(tmp_path):
    run(tmp_path, STAGE + "stage(sys.argv[1])", tmp_path / "one")
    run(tmp_path, STAGE + "stage(sys.argv[1])", tmp_path / "two", launcher=TWO)
    assert_learned_alike(tmp_path, "")


def test_a_model_spread_over_two_processes_learns_what_a_whole_one_does_even_when_interrupted(tmp_path):
    run(tmp_path, SHARDED, tmp_path / "one")
    run(tmp_path, SHARDED, tmp_path / "two", launcher=TWO)
    assert_learned_alike(tmp_path, "-full", "-lora", "-old")


def test_spreading_takes_processes(split):
    with pytest.raises(GTIError, match="fsdp: .*there is one; start them with torchrun"):
        finetune(shaped("llama"), split, config(fsdp=True), progress=False)
    with pytest.raises(GTIError, match="fsdp: 4-bit layers cannot be spread"):
        config(fsdp=True, mode="qlora")


# ---- trackers, and what a resumed run says of itself


class Heard(TrainerCallback):
    "A tracker of its own: what was logged, by step."

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kw):
        self.logs.append((state.global_step, set(logs)))


def test_trackers_get_the_loss_of_every_step_of_every_task_and_of_every_look(toy, split, tmp_path, monkeypatch):
    heard, extended = Heard(), shaped("llama")
    monkeypatch.setattr("gti_nb.training.stage._check_reports", lambda *_: None)
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
    steps = lambda name: [step for step, names in heard.logs if name in names]
    assert steps("loss") == [1, 2, 3, 4, 5, 6] and steps("eval_loss") == [2, 4, 6], heard.logs
    assert steps("loss/item2index"), heard.logs


@pytest.mark.parametrize("change", [{}, dict(gradient_accumulation_steps=3), dict(packing=300), dict(gradient_checkpointing=True)])
def test_a_resumed_run_is_called_exact_only_where_it_is_computed_alike(change, split, tmp_path):
    class Dies(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            if state.global_step == 3:
                raise RuntimeError("dead")

    with pytest.raises(RuntimeError, match="dead"):
        finetune(shaped("llama"), split, config(save_steps=1), out_dir=tmp_path, callbacks=[Dies()], progress=False)
    assert finetune(shaped("llama"), split, config(save_steps=1, **change), out_dir=tmp_path, progress=False).resumed == [
        dict(step=2, exact=not change)
    ]


def test_a_model_that_mixes_packed_examples_is_refused(toy, split):
    extended = shaped("llama")
    batch = mixed(extended, toy, split)[0]
    embed = extended.embed
    leak = embed.register_forward_hook(
        lambda m, args, out: out + 0.02 * out.cumsum(1).roll(1, 1) * (torch.arange(out.shape[1]) > 40)[None, :, None]
    )  # what stands far before a token reaches it
    with pytest.raises(GTIError, match="keep packed examples apart"):
        check_loss(SFTLoss(extended, packing=400), batch)
    leak.remove()
    check_loss(SFTLoss(extended, packing=400), batch)


def test_a_model_that_cannot_go_on_from_a_beginning_is_read_whole(toy, split):
    extended = shaped("llama")

    def only_whole(module, args, kwargs):
        if kwargs.get("past_key_values") is not None:
            raise IndexError("list index out of range")

    broken = extended.backbone.register_forward_pre_hook(only_whole, with_kwargs=True)
    check_loss(loss := SFTLoss(extended), mixed(extended, toy, split)[0])
    assert not loss.share
    broken.remove()


def test_settings_that_do_not_exist_are_named():
    with pytest.raises(GTIError, match="lr_scheduler_type: .*'cosin'.*did you mean 'cosine'"):
        config(lr_scheduler_type="cosin")
    for wrong in ("10", 2.0):
        with pytest.raises(GTIError, match="steps: got .*expected a whole number"):
            config(steps=wrong)
    with pytest.raises(GTIError, match="lora_alpha: got -1"):
        config(lora_alpha=-1)
    with pytest.raises(GTIError, match="metric_for_best_model: .*set eval_steps too"):
        config(metric_for_best_model="loss")


def test_a_look_that_gives_no_numbers_is_named(split):
    with pytest.raises(GTIError, match="validation gave None; expected a number by name"):
        finetune(shaped("llama"), split, config(eval_steps=1), validate=lambda: None, progress=False)
