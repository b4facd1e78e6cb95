"""CPU seconds per step of the grounding stage and of three other ways to train new rows, and the peak memory of each.

Each way runs in its own trainer. They alternate in one process; the peak memory of each is measured in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/grounding.py --model smollm2-135m --mix text_to_sid --precision fp32

(a) full     `Trainer`, the whole tied matrix trains, its gradient masked to the new rows (the paper's Algorithm 1)
(b) peft     `Trainer`, PEFT `trainable_token_indices` on a plain model
(c) trl      TRL's `SFTTrainer` on our split embedding and head, completion-only loss
(d) ours     `gti_nb.grounding`: frozen prefixes kept, logits at the targets only, new rows as their own parameter

"ours" is timed on steps whose prefixes are already kept, as in all epochs but the first; "in the first epoch" computes them.
The others run with their default settings.
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from memory import peak_gb, peak_of
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from gti_nb.assets import load_base
from gti_nb.data.dataset import load_dataset
from gti_nb.grounding.batches import PairBatches, batch_schedule
from gti_nb.grounding.loss import GroundingLoss
from gti_nb.grounding.pairs import encode_pairs, grounding_pairs
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.model.losses import stage_flops
from gti_nb.sid.codes import SemanticIds
from gti_nb.training.stage import train_stage
from gti_nb.training.trainer import StageSettings

SHARE = {"text_to_sid": 1.0, "both": 0.5}


def prepare(a):
    "The model with its new tokens, the encoded pairs, and the pairs of every step."
    torch.manual_seed(0)
    dataset = load_dataset(a.data)
    sids = SemanticIds(torch.randint(a.codes, (dataset.n_items, a.levels)), [torch.eye(a.codes)] * a.levels)
    extended = ExtendedModel.extend(*load_base(a.model), sids)
    initialize(extended, "normal_matched")
    pairs = encode_pairs(extended, grounding_pairs(dataset, sids, tuple(a.templates), holdout=0).train)
    return extended, pairs, batch_schedule(pairs, steps=a.steps, batch_size=a.batch, share_text_to_sid=SHARE[a.mix])


def padded(pairs, rows) -> dict:
    "Whole sequences of a step, right-padded, with labels on the targets."
    group = pairs.iloc[rows]
    whole = [torch.tensor(p + r) for p, r in zip(group.prefix, group.rest, strict=True)]
    labels = [w.clone().index_fill_(0, torch.arange(len(w) - n), -100) for w, n in zip(whole, group.n_targets, strict=True)]

    def pad(x, value):
        return nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=value)

    return dict(input_ids=pad(whole, 0), attention_mask=pad([torch.ones_like(w) for w in whole], 0), labels=pad(labels, -100))


def arguments(scratch, a, cls=TrainingArguments, **kw):
    return cls(
        scratch,
        max_steps=a.steps,
        per_device_train_batch_size=a.batch,
        learning_rate=1e-3,
        weight_decay=0.0,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **kw,
    )


class Ready(Trainer):
    "`Trainer` over prepared batches, in order."

    def get_train_dataloader(self):
        return torch.utils.data.DataLoader(self.train_dataset, batch_size=None, collate_fn=lambda b: b)


def timed(trainer) -> float:
    "Process CPU seconds of a whole training run."
    trainer.remove_callback(PrinterCallback)
    start = time.process_time()
    trainer.train()
    return time.process_time() - start


def full(a, extended, pairs, schedule):
    "Algorithm 1 of the paper."
    model, n_pretrained = extended.merge().to(a.dtype).train(), extended.n_pretrained
    for p in model.parameters():
        p.requires_grad_(False)
    matrix = model.get_input_embeddings().weight.requires_grad_(True)
    mask = torch.zeros(len(matrix), 1, dtype=a.dtype)
    mask[n_pretrained:] = 1
    matrix.register_hook(lambda g: g * mask)
    batches = [padded(pairs, rows) for rows in schedule]

    def run():
        with tempfile.TemporaryDirectory() as scratch:
            return timed(Ready(model=model, args=arguments(scratch, a), train_dataset=batches))

    return run


def peft(a, extended, pairs, schedule):
    "PEFT's trainable tokens."
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        extended.merge().to(a.dtype),
        LoraConfig(
            r=1, target_modules=["q_proj"], layers_to_transform=[0], trainable_token_indices={"embed_tokens": extended.new_ids.tolist()}
        ),
    )
    for name, p in model.named_parameters():
        p.requires_grad_("token_adapter" in name or "trainable_tokens" in name)
    batches = [padded(pairs, rows) for rows in schedule]

    def run():
        with tempfile.TemporaryDirectory() as scratch:
            return timed(Ready(model=model, args=arguments(scratch, a), train_dataset=batches))

    return run


def trl(a, extended, pairs, schedule):
    "TRL's SFTTrainer on the split module."
    from trl import SFTConfig, SFTTrainer

    split = extended.compute_model(a.dtype)
    for p in split.parameters():
        p.requires_grad_(False)
    for p in extended.new_parameters():
        p.requires_grad_(True)
    order = pairs.iloc[[i for rows in schedule for i in rows]]
    data = Dataset.from_list(
        [
            dict(input_ids=p + r, labels=[-100] * (len(p) + len(r) - n) + (p + r)[-n:])
            for p, r, n in zip(order.prefix, order.rest, order.n_targets, strict=True)
        ]
    )

    def run():
        with tempfile.TemporaryDirectory() as scratch:
            args = arguments(
                scratch,
                a,
                SFTConfig,
                gradient_checkpointing=False,
                max_length=None,
                shuffle_dataset=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            )
            return timed(SFTTrainer(model=split, args=args, train_dataset=data, processing_class=extended.tokenizer))

    return run


def ours(a, extended, pairs, schedule):
    "The grounding stage."
    loss = GroundingLoss(extended, extended.compute_model(a.dtype), a.cache)
    extended.train_only(backbone=False)
    loss.prefixes.plan([(tuple(p[:f]), tuple(p[f:])) for p, f in zip(pairs.prefix, pairs.fixed, strict=True)] * 2)

    def run():
        start = time.process_time()
        groups = [dict(params=extended.new_parameters(), lr=1e-3)]
        train_stage(loss, PairBatches(pairs, schedule), groups, StageSettings("ours", a.steps, progress=False))
        return time.process_time() - start

    run.loss = loss
    return run


ARMS = dict(full=full, peft=peft, trl=trl, ours=ours)


def gemm_peak(dtype) -> float:
    "Floating-point operations per second of a large matrix product."
    x = torch.randn(2048, 2048, dtype=dtype)
    best = min(timed_once(lambda: x @ x) for _ in range(5))
    return 2 * 2048**3 / best


def timed_once(function) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama", help="name, folder or hub id for load_base")
    parser.add_argument("--data", default="toy", help="name or folder for load_dataset; movielens-100k for the numbers in the docs")
    parser.add_argument(
        "--mix", choices=list(SHARE), default="text_to_sid", help="pairs from text to SID only, or half of the steps in each direction"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--templates", nargs="+", default=["text_to_sid", "sid_to_title"])
    for name, value, text in [
        ("batch", 32, "pairs per step"),
        ("steps", 2, "steps of a timed run"),
        ("pairs", 3, "timed runs of each arm"),
        ("levels", 3, "codes per item"),
        ("codes", 64, "codes per level"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument(
        "--cache", type=float, default=2e9, help="size in bytes of the file for frozen prefixes (default 2e9, as in GroundingConfig)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.dtype = dict(fp32=torch.float32, bf16=torch.bfloat16)[a.precision]
    extended, pairs, schedule = prepare(a)
    if a.only:
        ARMS[a.only](a, extended, pairs, schedule)()
        return print(json.dumps(dict(peak_gb=peak_gb())))
    runs = {name: ARMS[name](a, extended, pairs, schedule) for name in a.arms}
    first = runs["ours"]() / a.steps
    seconds = {name: [] for name in runs}
    for _ in range(a.pairs):
        for name, run in runs.items():
            seconds[name].append(run() / a.steps)
    print(
        f"{a.model}, {a.data}, {a.mix}, {a.precision}, batch {a.batch}, {a.levels} x {a.codes} codes, "
        f"{torch.get_num_threads()} threads; CPU seconds per step, median of {a.pairs}"
    )
    memory = {} if a.no_memory else {name: peak_of(name) for name in runs}
    for name in runs:
        ratio = statistics.median(x / y for x, y in zip(seconds[name], seconds["ours"], strict=True))
        print(
            f"{name:5s} {statistics.median(seconds[name]):8.3f} s   {ratio:6.2f} x ours"
            + (f"   peak {memory[name]:.2f} GB" if memory else "")
        )
    print(f"ours  {first:8.3f} s   in the first epoch, prefixes computed")
    fed, targets = PairBatches(pairs, schedule).size(a.steps)
    flops = stage_flops(extended, through=fed, targets=targets) / a.steps
    own, peak = statistics.median(seconds["ours"]), gemm_peak(a.dtype)
    print(
        f"ours: {flops / 1e9:.1f} GFLOP per step, {fed / a.steps / own:.0f} fed tokens/s, "
        f"{flops / own / peak:.0%} of the GEMM peak of {peak / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main()
