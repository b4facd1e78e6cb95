"""Users per second of our constrained beam search and of `generate(num_beams=W, prefix_allowed_tokens_fn=...)`.

The two alternate in one process, and the peak memory of each is measured in a process of its own. On the CPU the clock is process CPU time,
on a GPU wall time. With more than 1,000 items the benchmark also reports how long the tree takes to build, and its speed relative to a
catalogue of 1,000 items, with and without 50 excluded items per user.

    OMP_NUM_THREADS=1 python benchmarks/decode.py --model smollm2-135m --beams 20 --tokens 84 --batch 4
    OMP_NUM_THREADS=1 python benchmarks/decode.py --model smollm2-135m --beams 50 --tokens 150 --batch 8 --pairs 3
    OMP_NUM_THREADS=1 python benchmarks/decode.py --model smollm2-135m --items 1000000 --codes 256 --levels 4
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from memory import peak_gb

from gti_nb.assets import load_base
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie, allowed_codes
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds

GPU = torch.cuda.is_available()


def seconds(function) -> tuple[float, object]:
    "Process CPU time of a call on the CPU, wall time on a GPU, and its result."
    clock = time.perf_counter if GPU else time.process_time
    start = clock()
    result = function()
    return clock() - start, result


def ratio(a, b, pairs: int) -> tuple[float, float, float]:
    "Median seconds of two alternating calls, and the median of a / b."
    times = [(seconds(a)[0], seconds(b)[0]) for _ in range(pairs)]
    return statistics.median(x for x, _ in times), statistics.median(y for _, y in times), statistics.median(x / y for x, y in times)


def catalogue(n_items: int, codes: int, levels: int) -> SemanticIds:
    "Random semantic IDs."
    return SemanticIds(torch.randint(codes, (n_items, levels), generator=torch.Generator().manual_seed(0)), [torch.eye(codes)] * levels)


def set_up(a: argparse.Namespace) -> SimpleNamespace:
    "The model with random new rows, the tree, and both arms as functions."
    rng, device = torch.Generator().manual_seed(0), "cuda" if GPU else "cpu"
    sids = catalogue(a.items, a.codes, a.levels)
    extended = ExtendedModel.extend(*load_base(a.model), sids)
    extended.new_rows.data += float(extended.pretrained_rows.std()) * torch.randn(extended.new_rows.shape, generator=rng)
    extended.model.to(device)
    build, trie = seconds(lambda: SidTrie(sids))
    n_pretrained, prompts = extended.n_pretrained, torch.randint(extended.n_pretrained, (a.batch, a.tokens), generator=rng)

    def allowed(_, ids):
        prefix = tuple(int(t) - n_pretrained - trie.offsets[level] for level, t in enumerate(ids[a.tokens :]))
        return [n_pretrained + trie.offsets[len(prefix)] + c for c in allowed_codes(trie, prefix) or [0]]

    def theirs(plain):
        return (
            plain.generate(
                prompts.to(device),
                attention_mask=torch.ones_like(prompts).to(device),
                num_beams=a.beams,
                num_return_sequences=a.beams,
                do_sample=False,
                max_new_tokens=a.levels,
                length_penalty=0.0,
                eos_token_id=None,
                pad_token_id=0,
                prefix_allowed_tokens_fn=allowed,
            )
            .cpu()[:, a.tokens :]
            .view(a.batch, a.beams, a.levels)
        )

    def ours(trie=trie, **options):
        return beam_search(extended, prompts.tolist(), trie, a.beams, batch_size=a.batch, **options)

    return SimpleNamespace(extended=extended, trie=trie, build=build, theirs=theirs, ours=ours)


def against_generate(a: argparse.Namespace, s: SimpleNamespace) -> None:
    "Check that both arms find the same items, and print their speeds."
    plain = s.extended.merge()
    codes = s.theirs(plain) - s.extended.n_pretrained - torch.tensor(s.trie.offsets)
    distinct = [list(dict.fromkeys(map(tuple, row.tolist()))) for row in s.ours().codes]
    same = sum(mine == [tuple(c) for c in row.tolist()][: len(mine)] for mine, row in zip(distinct, codes, strict=True))
    t, o, times = ratio(lambda: s.theirs(plain), s.ours, a.pairs)
    print(f"equal ordered lists: {same} of {a.batch}")
    print(f"generate {a.batch / t:.2f} users/s, beam_search {a.batch / o:.2f} users/s, ratio {times:.1f}")


def against_1000_items(a: argparse.Namespace, s: SimpleNamespace) -> None:
    "Print the size of the tree, and the speed relative to a catalogue of 1,000 items."
    small, rng = SidTrie(catalogue(1000, a.codes, a.levels)), torch.Generator().manual_seed(1)
    nodes = [len(c) for c in s.trie.codes]
    print(f"tree of {a.items} items: built in {s.build:.2f} s, {s.trie.nbytes / 1e6:.1f} MB, nodes by level {nodes}")
    for excluded in (0, 50):
        many, few = ([torch.randint(n, (excluded,), generator=rng) for _ in range(a.batch)] for n in (a.items, 1000))
        in_small = partial(s.ours, small, exclude=few if excluded else None)
        in_large = partial(s.ours, s.trie, exclude=many if excluded else None)
        f, m, times = ratio(in_small, in_large, a.pairs)
        print(f"{excluded} items excluded: {a.batch / m:.2f} users/s, with 1000 items {a.batch / f:.2f} users/s, ratio {times:.2f}")


def peak() -> float:
    "Peak memory in GB of this process since `forget_peak`; on a GPU the device's."
    if GPU:
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_gb()


def forget_peak() -> None:
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def one_arm(a: argparse.Namespace, s: SimpleNamespace) -> None:
    "Peak memory of one arm, printed as JSON: of the model alone, and while it decodes."
    plain = s.extended.merge() if a.arm == "generate" else None
    if plain is not None:
        s.extended.model = s.extended.embed = s.extended.head = None
    decode = s.ours if plain is None else lambda: s.theirs(plain)
    forget_peak()
    before = peak()
    decode()
    print(json.dumps(dict(model=before, peak=peak())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama", help="name, folder or hub id for load_base")
    for name, value, text in [
        ("beams", 20, "beam width W"),
        ("tokens", 84, "prompt length"),
        ("batch", 4, "prompts per batch"),
        ("items", 1349, "items of the catalogue"),
        ("codes", 64, "codes per level"),
        ("levels", 3, "codes per item"),
        ("pairs", 5, "timed pairs"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument(
        "--arm",
        choices=["generate", "beam_search"],
        help="measure only this arm's peak memory; the benchmark starts itself with this option",
    )
    a = parser.parse_args()
    if a.arm:
        return one_arm(a, set_up(a))
    data = f"{a.batch} prompts of {a.tokens} tokens, {a.items} items of {a.levels} x {a.codes} codes"
    print(f"{a.model}, W={a.beams}, {data}, {'GPU' if GPU else 'CPU'}, {torch.get_num_threads()} threads, median of {a.pairs} pairs")
    s = set_up(a)
    against_generate(a, s)
    if a.items > 1000:
        against_1000_items(a, s)
    del s
    for arm in ("generate", "beam_search"):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--arm", arm], check=True, capture_output=True, text=True)
        gb = json.loads(done.stdout.splitlines()[-1])
        print(f"memory of {arm}: peak {gb['peak']:.2f} GB, with the model loaded and nothing decoded {gb['model']:.2f} GB")


if __name__ == "__main__":
    main()
