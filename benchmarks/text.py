"""CPU time of `encode_text` and of `SentenceTransformer.encode` in fp32, interleaved in one process.

It also prints the share of padding in both, and what bf16 changes.

OMP_NUM_THREADS=1 python benchmarks/text.py --data movielens-100k --texts 400
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from gti_nb.assets import asset_path
from gti_nb.core import pick_device
from gti_nb.data.dataset import load_dataset
from gti_nb.text import encode_text, item_texts, token_batches


def seconds(function) -> tuple[float, torch.Tensor]:
    "Process CPU time of a call on the CPU, wall time on a GPU, and its result."
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    result = function()
    return clock() - start, result


def padding(lengths: list[int], batches: list[list[int]]) -> float:
    "Share of the batches' token positions that are padding."
    return 1 - sum(lengths) / sum(len(b) * max(lengths[i] for i in b) for b in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="movielens-100k", help="name or folder for load_dataset")
    parser.add_argument("--template", default="title+description+categories", help="template of item_texts")
    parser.add_argument("--model", default="all-minilm-l6-v2", help="model of encode_text")
    parser.add_argument(
        "--mixed", action="store_true", help="put the texts of ten items into every tenth text, so that lengths differ widely"
    )
    for name, value, text in [
        ("texts", 400, "number of texts, drawn at random"),
        ("batch-tokens", 0, "tokens per batch of encode_text; 0 takes its default"),
        ("batch-size", 32, "texts per batch of SentenceTransformer.encode"),
        ("pairs", 5, "number of timed pairs"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    a = parser.parse_args()
    texts = item_texts(load_dataset(a.data), a.template)
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[: a.texts]]
    if a.mixed:
        texts = [" ".join(texts[i : i + 10]) if i % 10 == 0 else t for i, t in enumerate(texts)]
    device = pick_device()
    plain = SentenceTransformer(str(asset_path(a.model, "encoder")), device=str(device), model_kwargs={"dtype": torch.float32})

    def theirs():
        return plain.encode(
            texts, batch_size=a.batch_size, normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False
        ).cpu()

    def ours(precision="fp32"):
        return encode_text(texts, a.model, precision, a.batch_tokens or None, cache=False, progress=False)

    lengths = [len(ids) for ids in plain.tokenizer(texts, truncation=True, max_length=plain.max_seq_length)["input_ids"]]
    by_characters = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    their_batches = [by_characters[i : i + a.batch_size] for i in range(0, len(texts), a.batch_size)]
    our_batches = token_batches(lengths, a.batch_tokens or (1024 if device.type == "cpu" else 32_768))
    print(
        f"{a.model}, {len(texts)} texts of {a.data}{' (mixed)' if a.mixed else ''}, "
        f"{statistics.mean(lengths):.1f} tokens on average and {max(lengths)} at most, "
        f"{device}, {torch.get_num_threads()} threads, median of {a.pairs} pairs"
    )
    print(
        f"padding: SentenceTransformer.encode {padding(lengths, their_batches):.1%} in {len(their_batches)} batches, "
        f"encode_text {padding(lengths, our_batches):.1%} in {len(our_batches)} batches"
    )
    wanted = theirs()
    for precision in ("fp32", "bf16"):
        cosine = float((ours(precision) * wanted).sum(1).min())
        pairs = [(seconds(theirs)[0], seconds(partial(ours, precision))[0]) for _ in range(a.pairs)]
        their_median, our_median = (statistics.median(x) for x in zip(*pairs, strict=True))
        ratio = statistics.median(our_time / their_time for their_time, our_time in pairs)
        print(
            f"{precision}: SentenceTransformer.encode in fp32 {their_median:.2f} s, encode_text {our_median:.2f} s, "
            f"ratio {ratio:.2f}; smallest cosine {cosine:.5f}"
        )


if __name__ == "__main__":
    main()
