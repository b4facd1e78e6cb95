"""Everything worth checking and measuring on a GPU, by one command on a machine without network.

    python benchmarks/gpu.py --out outputs/gpu

The parts, in this order; a part that would not end within `--minutes` is skipped, and the page says so:

agreement   loss, gradients and beam lists of the device against the CPU's, in fp32 and bf16
peak        the device's rate for a large matrix product, in fp32 and bf16
grounding   tokens per second at the shapes of Qwen3-0.6B (random weights), against the paper's Algorithm 1
fine-tuning tokens per second at the same shapes, and its share of the bf16 peak
decoding    users per second and peak memory
sharding    fine-tuning under torchrun with FSDP, one process per device
qlora       fine-tuning with 4-bit layers, where bitsandbytes is installed
tests       `pytest -m gpu`
demo        `studies/demo.yaml`, with the assets that were brought along

It writes `gpu.json` and the page `gpu.md` into `--out`. `--device cpu --tiny` runs all parts on a small model, to check the command itself.
CONTRIBUTING.md says how to pack wheels and assets for a machine without network.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from memory import peak_gb
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import gti_nb
from gti_nb.assets import load_base
from gti_nb.assets.tiny import tiny_tokenizer
from gti_nb.data.dataset import RecDataset, load_dataset
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie
from gti_nb.grounding.batches import PairBatches, batch_schedule
from gti_nb.grounding.loss import GroundingLoss, reference_loss
from gti_nb.grounding.pairs import GroundingPairs, encode_pairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.batches import example_batches
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.examples import TaskSettings
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.stage import finetune
from gti_nb.sft.tasks import make_tasks
from gti_nb.sid.codes import SemanticIds

ROOT = Path(__file__).resolve().parent.parent
QWEN3_06B = dict(  # https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
    hidden_size=1024,
    num_hidden_layers=28,
    intermediate_size=3072,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
QWEN3_TOKENS = 151_936


class Bench:
    "What all parts share: the device, the sizes and the data."

    def __init__(self, device: str, tiny: bool, data: str):
        self.device, self.tiny = torch.device(device), tiny
        self.on_gpu = self.device.type == "cuda"
        self.dataset: RecDataset = load_dataset("toy" if tiny else data)
        random = torch.Generator().manual_seed(0)
        codes = 8 if tiny else 256
        self.sids = SemanticIds(torch.randint(codes, (self.dataset.n_items, 3), generator=random), [torch.eye(codes)] * 3)
        self.split = self.dataset.leave_one_out()

    def extend(self, model, tokenizer, device: torch.device | str) -> ExtendedModel:
        "A model with distinct new rows on a device."
        extended = ExtendedModel.extend(model.to(device), tokenizer, self.sids)
        initialize(extended, "normal_matched")
        return extended

    def large(self) -> ExtendedModel:
        "A random model of Qwen3-0.6B's shapes on the device; tiny-qwen3 with `--tiny`."
        if self.tiny:
            return self.extend(*load_base("tiny-qwen3"), self.device)
        tokenizer = wide_tokenizer(QWEN3_TOKENS)
        config = AutoConfig.for_model("qwen3", vocab_size=len(tokenizer), **QWEN3_06B)
        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return self.extend(model.eval(), tokenizer, self.device)

    def pairs(self, holdout: float = 0) -> GroundingPairs:
        return grounding_pairs(self.dataset, self.sids, ("title_to_sid", "sid_to_title"), 1, holdout)

    def histories(self, extended: ExtendedModel, steps: int, batch: int) -> list:
        "Examples of every step: histories in which every next item is a target."
        tasks = make_tasks("retrieval", extended, self.dataset, self.split, TaskSettings(history=20, window=20))
        return list(example_batches(tasks, steps=steps, batch_size=batch))

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        "Wall seconds of some work on the device."
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def peak_memory(self) -> float:
        "Peak memory in GB: of the device, or of this process on a CPU."
        return torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else peak_gb()

    def forget_peak(self) -> None:
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def wide_tokenizer(size: int) -> PreTrainedTokenizerFast:
    "The tiny tokenizer with unused tokens up to `size`."
    small = tiny_tokenizer()
    core = json.loads(small.backend_tokenizer.to_str())
    vocabulary = core["model"]["vocab"]
    vocabulary |= {f"unused {i}": i for i in range(len(vocabulary), size)}
    names = dict(bos_token=small.bos_token, eos_token=small.eos_token, pad_token=small.pad_token)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)), chat_template=small.chat_template, **names)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def losses(bench: Bench, device: torch.device | str, dtype: torch.dtype) -> dict:
    "Loss and gradient of the new rows in both stages, on the same batch."
    extended = bench.extend(*load_base("tiny-llama" if bench.tiny else "smollm2-135m"), device)
    encoded = encode_pairs(extended, bench.pairs().train)
    asked = encoded[encoded.direction == "text_to_sid"].iloc[:16]
    batch = {name: asked[name].to_list() for name in ("prefix", "rest", "n_targets")}
    extended.train_only(backbone=False)
    grounding = GroundingLoss(extended, extended.compute_model(dtype))(**batch, fixed=int(asked.fixed.iloc[0]))
    grounding.backward()
    assert extended.new_rows.grad is not None
    grounding_gradient = extended.new_rows.grad.float().cpu().clone()
    extended.new_rows.grad = None
    extended.train_only(backbone=True)
    examples = bench.histories(extended, 1, 4)[0]
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        sft, _ = SFTLoss(extended)(examples)
    sft.backward()
    sft_gradient = extended.new_rows.grad.float().cpu()
    return dict(grounding=(grounding.item(), grounding_gradient), sft=(sft.item(), sft_gradient), extended=extended)


def beams(bench: Bench, extended: ExtendedModel, dtype: torch.dtype, users: int = 16):
    random = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 300, (users, 40), generator=random).tolist()
    with torch.no_grad():
        return beam_search(extended, prompts, SidTrie(bench.sids), min(10, bench.dataset.n_items), dtype=dtype)


def agreement(bench: Bench) -> dict:
    "Differences between the device and the CPU; fp32 on the CPU is the reference."
    reference = losses(bench, "cpu", torch.float32)
    lists = beams(bench, reference["extended"], torch.float32).items
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        here = losses(bench, bench.device, dtype)
        for stage in ("grounding", "sft"):
            loss, gradient = here[stage]
            expected, gradient_expected = reference[stage]
            found[f"{stage}, {name}: loss, relative difference"] = abs(loss - expected) / abs(expected)
            found[f"{stage}, {name}: gradient, relative difference"] = relative(gradient, gradient_expected)
        own = beams(bench, here["extended"], dtype).items.cpu()
        found[f"beam lists, {name}: share of equal lists"] = float((own == lists).all(1).float().mean())
        shared = [len(set(a) & set(b)) / len(a) for a, b in zip(own.tolist(), lists.tolist(), strict=True)]
        found[f"beam lists, {name}: share of equal items"] = statistics.mean(shared)
    for stage in ("grounding", "sft"):
        if found[f"{stage}, fp32: loss, relative difference"] > 1e-4 or found[f"{stage}, fp32: gradient, relative difference"] > 1e-3:
            raise AssertionError(f"{stage}: the device and the CPU disagree in fp32: {found}")
    return found


def peak(bench: Bench) -> dict:
    "Operations per second of a square matrix product, the best of five."
    n = 256 if bench.tiny else 8192 if bench.on_gpu else 2048
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        bench.seconds(lambda a=a, b=b: a @ b)
        best = min(bench.seconds(lambda a=a, b=b: a @ b) for _ in range(5))
        rates[f"{name}, TFLOP/s"] = 2 * n**3 / best / 1e12
    return rates


def rate(bench: Bench, result, bf16_peak: float) -> dict:
    "Tokens per second of a stage, its share of the peak, and its memory."
    return {
        "tokens/s": result.tokens / result.seconds,
        "TFLOP/s": result.flops / result.seconds / 1e12,
        "share of the bf16 peak": result.flops / result.seconds / 1e12 / bf16_peak,
        "steps/s": len(result.losses) / result.seconds,
        "peak memory, GB": bench.peak_memory(),
    }


def grounding(bench: Bench, bf16_peak: float) -> dict:
    "The stage from text to semantic ID, and one step of the paper's Algorithm 1 on the same pairs."
    extended = bench.large()
    steps, batch = (6, 4) if bench.tiny else (200, 64)
    config = GroundingConfig(steps=steps, batch_size=batch, share_text_to_sid=1.0, save_steps=0)
    bench.forget_peak()
    result = ground(extended, bench.pairs(), config, progress=False)
    found = rate(bench, result, bf16_peak)
    encoded = encode_pairs(extended, bench.pairs().train)
    batches = PairBatches(encoded, batch_schedule(encoded, steps=2, batch_size=batch, share_text_to_sid=1.0))
    step = {name: batches(0, 0, 1)[name] for name in ("prefix", "rest", "n_targets")}
    reference_loss(extended, **step)
    algorithm_1 = bench.seconds(lambda: reference_loss(extended, **step))
    return found | {"times the speed of Algorithm 1 (fp32, merging included)": algorithm_1 * found["steps/s"]}


def fine_tuning(bench: Bench, bf16_peak: float, **settings) -> dict:
    extended = bench.large()
    steps, batch = (4, 2) if bench.tiny else (60, 32)
    config = SFTConfig(steps=steps, batch_size=batch, save_steps=0, **settings)
    examples = bench.histories(extended, steps, batch)
    bench.forget_peak()
    return rate(bench, finetune(extended, examples, config, progress=False), bf16_peak)


def decoding(bench: Bench, bf16_peak: float) -> dict:
    extended = bench.large()
    users = 8 if bench.tiny else 256
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        bench.forget_peak()
        beams(bench, extended, dtype, 4)
        found[f"{name}, users/s"] = users / bench.seconds(lambda dtype=dtype: beams(bench, extended, dtype, users))
        found[f"{name}, peak memory, GB"] = bench.peak_memory()
    return found


def sharding(bench: Bench, bf16_peak: float) -> dict:
    "Fine-tuning under torchrun with FSDP; this file starts itself in every process."
    processes = torch.cuda.device_count() if bench.on_gpu else 2
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *sys.argv, "--process"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"torchrun ended with {done.returncode}: {done.stderr[-2000:]}")
    return {"processes": processes} | json.loads(done.stdout.strip().splitlines()[-1])


def one_process(bench: Bench) -> None:
    "What every process of `sharding` does; the first one prints the rates."
    found = fine_tuning(bench, 1.0, fsdp=True)
    found.pop("share of the bf16 peak")
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(json.dumps(found))


def qlora(bench: Bench, bf16_peak: float) -> dict:
    if not bench.on_gpu:
        return {"skipped": "needs a GPU"}
    return fine_tuning(bench, bf16_peak, mode="qlora")


def command(arguments: list[str]) -> dict:
    "A command's seconds and the end of what it printed; an error unless it succeeds."
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode:
        raise RuntimeError("\n".join(said[-20:]))
    return {"seconds": time.perf_counter() - start, "said": said[-1] if said else ""}


def tests(bench: Bench, bf16_peak: float) -> dict:
    if not bench.on_gpu:
        return {"skipped": "the tests marked gpu need a GPU"}
    return command(["-m", "pytest", "-q", "-m", "gpu", "tests"])


def demo(bench: Bench, bf16_peak: float) -> dict:
    if bench.tiny:
        return {"skipped": "with --tiny"}
    return command(["-c", "from gti_nb.cli import main; main()", "study", "studies/demo.yaml", "--fresh"])


PARTS: dict[str, tuple[Callable, float]] = {  # and the seconds that a part needs at most on a GPU of 2023 or later
    "grounding": (grounding, 90),
    "fine-tuning": (fine_tuning, 60),
    "decoding": (decoding, 40),
    "sharding": (sharding, 90),
    "qlora": (qlora, 60),
    "tests": (tests, 120),
    "demo": (demo, 180),
}


def machine(bench: Bench) -> dict:
    card = torch.cuda.get_device_name() if bench.on_gpu else platform.processor() or platform.machine()
    return {
        "device": card,
        "devices": torch.cuda.device_count() if bench.on_gpu else 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "-",
        "transformers": transformers.__version__,
        "gti_nb": gti_nb.__version__,
        "model": "tiny-qwen3" if bench.tiny else "Qwen3-0.6B's shapes, random weights",
        "data": bench.dataset.name,
    }


def shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page(found: dict[str, dict]) -> str:
    "The results as Markdown."
    lines = [f"# Measured on {found['machine']['device']}", "", f"By `python benchmarks/gpu.py`, {found['machine']['date']}.", ""]
    for part, values in found.items():
        lines += [f"## {part.capitalize()}", "", "| what | value |", "|---|---|"]
        lines += [f"| {name} | {shown(value)} |" for name, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="outputs/gpu", help="folder of gpu.json and gpu.md (default outputs/gpu)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default cuda)")
    parser.add_argument("--data", default="movielens-100k", help="name or folder for load_dataset (default movielens-100k)")
    parser.add_argument("--minutes", type=float, default=10, help="parts that would end later are skipped (default 10)")
    parser.add_argument("--tiny", action="store_true", help="a small model and few steps: checks the command itself")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    devices = torch.cuda.device_count()
    if a.device.startswith("cuda") and (torch.device(a.device).index or 0) >= devices:
        parser.error(f"--device: got {a.device}, this PyTorch sees {devices} CUDA devices; --device cpu --tiny checks the command itself")
    bench = Bench(a.device, a.tiny, a.data)
    if a.process:
        one_process(bench)
        return 0
    end = time.monotonic() + 60 * a.minutes
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict] = {"machine": machine(bench) | {"date": time.strftime("%Y-%m-%d")}}
    failed = []
    bf16_peak = 1.0
    parts = {"agreement": (lambda bench, _: agreement(bench), 60.0), "peak": (lambda bench, _: peak(bench), 10.0)} | PARTS
    for name, (part, needs) in parts.items():
        if time.monotonic() + (0 if bench.tiny else needs) > end:
            found[name] = {"skipped": f"fewer than {needs:.0f} s were left"}
        else:
            start = time.perf_counter()
            try:
                found[name] = part(bench, bf16_peak)
            except Exception as e:  # the other parts are still worth running; the exit status is 1
                traceback.print_exc()
                found[name] = {"failed": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
                failed.append(name)
            found[name]["seconds of this part"] = time.perf_counter() - start
        bf16_peak = found.get("peak", {}).get("bf16, TFLOP/s", bf16_peak)
        print(name, {k: shown(v) for k, v in found[name].items()}, flush=True)
        (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (out / "gpu.md").write_text(page(found))
    print(out / "gpu.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
