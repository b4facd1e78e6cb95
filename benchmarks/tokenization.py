"""Our quantizers against those of other libraries on the same vectors.

The benchmark prints squared errors and process CPU times; all arms alternate in one process.

OMP_NUM_THREADS=1 python benchmarks/tokenization.py --parts kmeans
OMP_NUM_THREADS=1 python benchmarks/tokenization.py --parts kmeans rqvae --vectors vectors.safetensors
OMP_NUM_THREADS=1 python benchmarks/tokenization.py --parts scale --rows 1000000
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import rqvae
import torch
from memory import peak_gb
from vectors import load_vectors

from gti_nb.sid.kmeans import RQKMeans


def level_by_level(vectors: np.ndarray, levels: int, cluster) -> np.ndarray:
    "What `levels` rounds of another library's k-means on the residuals leave of the vectors; `cluster` gives centres and labels."
    residuals = vectors
    for level in range(levels):
        centres, labels = cluster(residuals, level)
        residuals = residuals - centres[labels]
    return residuals


def with_faiss(vectors: np.ndarray, levels: int, codes: int, seed: int) -> np.ndarray:
    "faiss.Kmeans with its defaults: 25 iterations, random start, stops when nothing changes."
    import faiss

    def cluster(x, level):
        kmeans = faiss.Kmeans(x.shape[1], codes, seed=100 * seed + level)
        kmeans.train(x)
        return kmeans.centroids, kmeans.assign(x)[1]

    return level_by_level(vectors, levels, cluster)


def with_sklearn(vectors: np.ndarray, levels: int, codes: int, seed: int) -> np.ndarray:
    "sklearn.cluster.KMeans with its defaults: one greedy k-means++ start (n_init='auto'), at most 300 iterations."
    from sklearn.cluster import KMeans

    def cluster(x, level):
        kmeans = KMeans(codes, random_state=100 * seed + level).fit(x)
        return kmeans.cluster_centers_, kmeans.labels_

    return level_by_level(vectors, levels, cluster)


def with_semantic_id(vectors: np.ndarray, levels: int, codes: int, seed: int) -> np.ndarray:
    "semantic_id.RQKMeans with its defaults: scikit-learn with the best of ten starts, at most 100 iterations."
    from semantic_id import RQKMeans as SemanticIdRQKMeans

    model = SemanticIdRQKMeans(levels, codes, random_state=seed).fit(vectors)
    return vectors - model.decode(model.encode(vectors))


def with_ours(vectors: np.ndarray, levels: int, codes: int, seed: int) -> np.ndarray:
    "Our RQKMeans with its defaults, on the CPU."
    return vectors - RQKMeans(levels, codes, seed, device="cpu").fit(vectors).reconstruct().numpy()


ARMS = {"gti_nb": with_ours, "faiss": with_faiss, "scikit-learn": with_sklearn, "semantic-id": with_semantic_id}


def kmeans_part(a: argparse.Namespace, name: str, vectors: torch.Tensor) -> None:
    "RQ-KMeans against faiss, scikit-learn and semantic-id: the error of three seeds, the CPU time of interleaved runs."
    x = vectors.numpy()
    arms = [arm for arm in ARMS if arm not in a.without]
    for levels, codes in a.sizes:
        errors = {arm: [] for arm in arms}
        seconds = {arm: [] for arm in arms}
        with_ours(x, levels, codes, 0)  # warm up
        for run in range(a.runs):
            for arm in arms:
                if arm == "semantic-id" and run > 2:
                    continue  # ten times the work of scikit-learn
                start = time.process_time()
                left = ARMS[arm](x, levels, codes, run)
                seconds[arm].append(time.process_time() - start)
                if run < 3:
                    errors[arm].append(float(np.square(left, dtype=np.float64).sum(1).mean()))
        print(f"\n{name}, {len(x)} x {x.shape[1]}, {levels} x {codes} codes, {torch.get_num_threads()} threads, {a.runs} runs")
        best = min(np.mean(errors[arm]) for arm in arms if arm != "gti_nb")
        lowest = min(min(errors[arm]) for arm in arms if arm != "gti_nb")
        for arm in arms:
            spread = f"({min(errors[arm]):.5f} to {max(errors[arm]):.5f})"
            print(f"  {arm:13s} mean squared error {np.mean(errors[arm]):.5f} {spread}, {statistics.median(seconds[arm]):7.3f} s")
        print(
            f"  error of gti_nb: {np.mean(errors['gti_nb']) / best:.3f} x the best peer's mean, "
            f"worst seed {max(errors['gti_nb']) / lowest:.3f} x the best peer's best seed (should be at most 1.01)"
        )
        for arm, limit in (("faiss", 1.1), ("scikit-learn", 0.6)):
            if arm in arms:
                ratios = [o / t for o, t in zip(seconds["gti_nb"], seconds[arm], strict=True)]
                print(f"  time of gti_nb: {statistics.median(ratios):.2f} x {arm} (should be at most {limit})")


def rqvae_part(a: argparse.Namespace, name: str, vectors: torch.Tensor) -> None:
    "RQ-VAE `paper` against LC-Rec's recipe at equal epochs, see rqvae.py."
    rqvae.compare(name, vectors, a.epochs)


def made_up(path: Path, rows: int, width: int) -> np.memmap:
    "A file of vectors around a few thousand topics, written block by block."
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(4096, width)).astype(np.float32)
    out = np.memmap(path, np.float32, "w+", shape=(rows, width))
    for start in range(0, rows, 8192):
        block = out[start : start + 8192]
        block[:] = topics[rng.integers(len(topics), size=len(block))] + rng.standard_normal(block.shape, np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    out.flush()
    return np.memmap(path, np.float32, "r", shape=(rows, width))


def scale_part(a: argparse.Namespace) -> None:
    "Time and peak memory of RQ-KMeans, 3 x 256 codes, on a memory-mapped file of made-up vectors."
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=made_up, args=(Path(folder) / "vectors", a.rows, a.width))
        process.start()
        process.join()  # a separate process, so that its memory is not counted
        vectors, before = np.memmap(Path(folder) / "vectors", np.float32, "r", shape=(a.rows, a.width)), peak_gb()
        start, cpu = time.perf_counter(), time.process_time()
        sids = RQKMeans(3, 256, device=a.device).fit(vectors, progress=True)
        wall, cpu, size = time.perf_counter() - start, time.process_time() - cpu, vectors.nbytes
    print(f"\n{a.rows:,} x {a.width} float32 ({size / 1e9:.2f} GB), 3 x 256 codes, device {a.device}:")
    print(f"  {cpu:.1f} s of CPU, {wall:.1f} s by the clock")
    print(f"  peak memory {peak_gb():.2f} GB, of which {before:.2f} GB before the fit")
    print(f"  peak memory is {peak_gb() * 1e9 / size:.2f} x the input (should be under 2)")
    print(f"  residual energy {[round(e, 4) for e in sids.quality['residual_energy']]}, fitted to {sids.quality['sampled']:,} vectors")


def size(text: str) -> tuple[int, int]:
    "Levels and codes of a text such as 3x64."
    levels, codes = text.split("x")
    return int(levels), int(codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["kmeans"], choices=["kmeans", "rqvae", "scale"])
    parser.add_argument(
        "--vectors",
        help="a safetensors file of `vectors` or a folder written by `tokenize` (default: MiniLM vectors of MovieLens-100K, computed)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        default=[(3, 64), (3, 256), (4, 256)],
        help="levels x codes of the kmeans part (default 3x64 3x256 4x256)",
    )
    parser.add_argument("--runs", type=int, default=7, help="timed runs of the kmeans part, at least 3 (default 7)")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=["faiss", "scikit-learn", "semantic-id"], help="peers to leave out of the kmeans part"
    )
    parser.add_argument("--epochs", type=int, default=200, help="epochs of the rqvae part (default 200)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of vectors of the scale part (default 1,000,000)")
    parser.add_argument("--width", type=int, default=384, help="width of the vectors of the scale part (default 384)")
    parser.add_argument("--device", default="cpu", help="device of the scale part (default cpu)")
    a = parser.parse_args()
    vectors = load_vectors(a.vectors) if {"kmeans", "rqvae"} & set(a.parts) else None
    if "kmeans" in a.parts:
        kmeans_part(a, *vectors)
    if "rqvae" in a.parts:
        rqvae_part(a, *vectors)
    if "scale" in a.parts:
        scale_part(a)


if __name__ == "__main__":
    main()
