"""CPU seconds of fine-tuning on histories with this package and with TRL's `SFTTrainer`.

Both alternate in one process, with the same model (pretrained rows frozen, everything else trained), rows of text, precision and targets.

    OMP_NUM_THREADS=1 python benchmarks/sft.py --model smollm2-135m --data movielens-100k --precision bf16

(a) trl          one row per target, only its codes scored; random order, as by default
(b) trl-grouped  the same with rows of similar length in a batch (`train_sampling_strategy="group_by_length"`)
(c) rows         the same rows through `gti_nb.sft`: batches of similar lengths, logits for the targets alone
(d) packed       the same rows, packed
(e) one-pass     the histories of the same split; every next item is a target of the same pass

Real tokens are those of the rows without padding. Before anything is timed, the losses of one batch are compared.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings

import numpy as np
import torch
from datasets import Dataset
from memory import peak_gb, peak_of
from transformers import PrinterCallback

from gti_nb.assets import load_base
from gti_nb.data.dataset import load_dataset
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.batches import example_batches
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.examples import TaskSettings
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.stage import parameter_groups, step_part
from gti_nb.sft.tasks import make_tasks
from gti_nb.sid.codes import SemanticIds
from gti_nb.training.stage import train_stage
from gti_nb.training.trainer import StageSettings


def prepare(a):
    "The model with its new tokens; the batches with one row per target, and the batches of histories in one pass."
    torch.manual_seed(0)
    dataset = load_dataset(a.data)
    sids = SemanticIds(torch.randint(a.codes, (dataset.n_items, a.levels)), [torch.eye(a.codes)] * a.levels)
    extended = ExtendedModel.extend(*load_base(a.model), sids)
    initialize(extended, "normal_matched")
    extended.train_only(backbone=True)
    split, settings = dataset.leave_one_out(), TaskSettings(history=a.history, window=a.history)
    few = sum(len(s) < 6 for s in split.train)
    if few:
        split.train = [s if len(s) >= 6 else s[:0] for s in split.train]
    median = np.median([len(s) for s in split.train if len(s)])
    print(f"{split.n_users - few:,} users with 6 training items or more, {few:,} with fewer are left out; the median user has {median:.0f}")

    def make(task):
        return list(example_batches(make_tasks(task, extended, dataset, split, settings), steps=a.steps, batch_size=a.batch))

    return extended, make("retrieval_rows"), make("retrieval")


def trl_trainer(a, extended, rows, scratch, **kw):
    "TRL's trainer over the rows, in random order; the labels mark the targets."
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    order = [e for batch in rows for e in batch]
    random.Random(0).shuffle(order)
    data = Dataset.from_list([dict(input_ids=e.ids.tolist(), labels=np.where(e.scored, e.ids, -100).tolist()) for e in order])
    args = TRLConfig(
        scratch,
        max_steps=a.steps,
        per_device_train_batch_size=a.batch,
        learning_rate=a.lr,
        weight_decay=0.0,
        adam_beta2=0.99,
        use_cpu=True,
        bf16=a.precision == "bf16",
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **kw,
    )
    trainer = SFTTrainer(model=extended.model, args=args, train_dataset=data, processing_class=extended.tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def timed(function) -> float:
    "Process CPU seconds."
    start = time.process_time()
    function()
    return time.process_time() - start


def trl(a, extended, rows, windows, **kw):
    def run():
        with tempfile.TemporaryDirectory() as scratch:
            return timed(trl_trainer(a, extended, rows, scratch, **kw).train)

    return run


def ours(a, extended, batches, packing=0):
    config = SFTConfig(steps=a.steps, batch_size=a.batch, learning_rate=a.lr, learning_rate_new=a.lr)
    loss = SFTLoss(extended, packing)

    def train():
        train_stage(
            loss,
            lambda step, part, parts: step_part(batches[step], part, parts),
            parameter_groups(extended, config, extended.backbone_parameters()),
            StageSettings("sft", a.steps, autocast=a.precision == "bf16", progress=False),
        )

    return lambda: timed(train)


ARMS = {
    "trl": trl,
    "trl-grouped": lambda a, extended, rows, windows: trl(a, extended, rows, windows, train_sampling_strategy="group_by_length"),
    "rows": lambda a, extended, rows, windows: ours(a, extended, rows),
    "packed": lambda a, extended, rows, windows: ours(a, extended, rows, packing=max(len(e.ids) for batch in rows for e in batch)),
    "one-pass": lambda a, extended, rows, windows: ours(a, extended, windows),
}


def same_loss(a, extended, rows) -> tuple[float, float]:
    "The loss of the first batch from TRL's trainer and from `SFTLoss`; fp32."
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trl_trainer(a, extended, rows, scratch)
        batch = trainer.data_collator([dict(input_ids=e.ids.tolist(), labels=np.where(e.scored, e.ids, -100).tolist()) for e in rows[0]])
        extended.model.train()
        with torch.no_grad():
            return trainer.compute_loss(extended.model, dict(batch)).item(), SFTLoss(extended)(rows[0])[0].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama", help="name, folder or hub id for load_base")
    parser.add_argument("--data", default="toy", help="name or folder for load_dataset; movielens-100k for the numbers in the docs")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="precision of forward and backward passes; weights are fp32"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    for name, value, text in [
        ("batch", 8, "rows per step"),
        ("steps", 16, "steps of a timed run"),
        ("pairs", 5, "timed runs of each arm"),
        ("levels", 3, "codes per item"),
        ("codes", 64, "codes per level"),
        ("history", 20, "maximum items per history or window"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate (default 1e-5)")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    a = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # a warning of transformers about an argument's name
    extended, rows, windows = prepare(a)
    if a.only:
        ARMS[a.only](a, extended, rows, windows)()
        return print(json.dumps(dict(peak_gb=peak_gb())))
    theirs, own = same_loss(a, extended, rows)
    print(f"loss of one batch: TRL {theirs:.6f}, ours {own:.6f}, difference {abs(theirs - own):.1e}")
    assert abs(theirs - own) < 1e-4, "the objectives differ, so nothing is compared"
    runs = {name: ARMS[name](a, extended, rows, windows) for name in a.arms}
    seconds = {name: [] for name in runs}
    for _ in range(a.pairs):
        for name, run in runs.items():
            seconds[name].append(run())
    tokens = {name: sum(len(e.ids) for batch in (windows if name == "one-pass" else rows) for e in batch) for name in runs}
    targets = {name: sum(int(e.scored.sum()) for batch in (windows if name == "one-pass" else rows) for e in batch) for name in runs}
    memory = {} if a.no_memory else {name: peak_of(name) for name in runs}
    print(
        f"{a.model}, {a.data}, {a.precision}, batch {a.batch}, {a.steps} steps, {a.levels} x {a.codes} codes, "
        f"{torch.get_num_threads()} threads; CPU seconds, median of {a.pairs}"
    )
    for name in runs:
        second = statistics.median(seconds[name])
        parts = [f"{name:12s} {second / a.steps:7.3f} s per step", f"{tokens[name] / second:8.0f} real tokens/s"]
        parts.append(f"{targets[name] / second:8.1f} targets/s")
        if "trl" in runs and name != "trl":
            ratio = statistics.median(x / y for x, y in zip(seconds["trl"], seconds[name], strict=True))
            parts.append(f"{ratio * tokens[name] / tokens['trl']:5.2f} x TRL's tokens/s")
            parts.append(f"{ratio * targets[name] / targets['trl']:6.2f} x its targets/s")
        if memory:
            parts.append(f"peak {memory[name]:.2f} GB")
        print("   ".join(parts))


if __name__ == "__main__":
    main()
