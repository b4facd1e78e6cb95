"""Users per CPU second of our constrained beam search and of `generate(num_beams=W, prefix_allowed_tokens_fn=...)`, interleaved in one process.

    OMP_NUM_THREADS=1 python benchmarks/decode.py --model smollm2-135m --beams 20 --tokens 84 --batch 4
"""
import argparse, statistics, time
import torch
from gti_nb.assets import load_base
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie, allowed_codes
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vocab import SidModel


def cpu_seconds(function) -> tuple[float, object]:
    "Process CPU time of a call on the CPU, wall time on a GPU, and its result."
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    result = function()
    return clock() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llama", help="as load_base takes it")
    for name, value, text in [("beams", 20, "W"), ("tokens", 84, "prompt length"), ("batch", 4, "prompts"), ("items", 1349, "catalogue"), ("codes", 64, "codes a level"), ("pairs", 5, "timed pairs")]:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    a = parser.parse_args()
    rng, device = torch.Generator().manual_seed(0), "cuda" if torch.cuda.is_available() else "cpu"
    sids = SemanticIds(torch.randint(a.codes, (a.items, 3), generator=rng), [torch.eye(a.codes)] * 3)
    sid_model = SidModel.extend(*load_base(a.model), sids)
    spread = float(sid_model.old_rows.std())
    sid_model.new_rows.data += spread * torch.randn(sid_model.new_rows.shape, generator=rng)
    sid_model.model.to(device)
    trie, plain, n_old = SidTrie(sids), sid_model.merge(), sid_model.n_old
    prompts = torch.randint(sid_model.n_old, (a.batch, a.tokens), generator=rng)

    def allowed(_, ids):
        prefix = tuple(int(t) - n_old - trie.offsets[l] for l, t in enumerate(ids[a.tokens:]))
        return [n_old + trie.offsets[len(prefix)] + c for c in allowed_codes(trie, prefix) or [0]]

    def theirs():
        return plain.generate(prompts.to(device), attention_mask=torch.ones_like(prompts).to(device), num_beams=a.beams, num_return_sequences=a.beams, do_sample=False, max_new_tokens=3,
                              length_penalty=0.0, eos_token_id=None, pad_token_id=0, prefix_allowed_tokens_fn=allowed).cpu()[:, a.tokens:].view(a.batch, a.beams, 3)

    def ours(dtype=torch.float32): return beam_search(sid_model, prompts.tolist(), trie, a.beams, a.batch, dtype)

    codes = theirs() - n_old - torch.tensor(trie.offsets)
    found = ours().codes
    distinct = [list(dict.fromkeys(map(tuple, row.tolist()))) for row in found]
    same = sum(d == [tuple(c) for c in row.tolist()][:len(d)] for d, row in zip(distinct, codes))
    pairs = [(cpu_seconds(theirs)[0], cpu_seconds(ours)[0]) for _ in range(a.pairs)]
    t, o = (statistics.median(x) for x in zip(*pairs))
    print(f"{a.model}, W={a.beams}, {a.batch} prompts of {a.tokens} tokens, {a.items} items, {device}, {torch.get_num_threads()} threads, median of {a.pairs} pairs")
    print(f"equal ordered lists: {same} of {a.batch}")
    print(f"generate {a.batch / t:.2f} users/s, beam_search {a.batch / o:.2f} users/s, ratio {statistics.median(x / y for x, y in pairs):.1f}")


if __name__ == "__main__": main()
