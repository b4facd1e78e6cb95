"""RQ-VAE `paper` against LC-Rec's recipe with vector-quantize-pytorch's ResidualVQ, with equal vectors, epochs, levels and codes.

    OMP_NUM_THREADS=1 python benchmarks/rqvae.py --epochs 200
    OMP_NUM_THREADS=1 python benchmarks/rqvae.py --epochs 200 --vectors vectors.safetensors

The recipe: MLP 2048-1024-512-256-128-64 -> 32 with Xavier weights and ReLU, AdamW (1e-3, weight decay 1e-4), batches of 1,024, k-means
start from the first batch, commitment .25. ResidualVQ has no Sinkhorn-Knopp, which LC-Rec uses on the last level in training. Its codebooks
follow their items by moving averages (`ema`, its default) or by gradient (`gradient`, as LC-Rec's do; items and codes then pull with equal
weight). LC-Rec does not centre or scale its vectors; the arms with `+scale` centre and scale them as ours does.
Codes of all arms are the nearest ones, before any collision policy. Ours ends with a reseeding of dead codes; `unaided` is the mean
utilization at the last measurement before it. Items with equal vectors collide in every arm; their share is
printed as the floor.
"""

import argparse
import math
import time

import pandas as pd
import torch
import torch.nn.functional as F
from vectors import load_vectors

from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.rqvae import RQVAE
from gti_nb.sid.rqvae_config import rqvae_config
from gti_nb.sid.rqvae_network import RQVAENetwork


def report(arm: str, codes: torch.Tensor, sizes: int, reconstruction: float, seconds: float) -> dict:
    "A row of the table."
    card = SemanticIds(codes, [torch.zeros(sizes, 0)] * codes.shape[1])
    return dict(
        arm=arm,
        collision=card.summary()["collision_excess"],
        **{f"utilization_{level}": value for level, value in card.report()["utilization"].items()},
        reconstruction=reconstruction,
        cpu_seconds=seconds,
    )


def ours(preset: str, vectors: torch.Tensor, epochs: int, seed: int) -> dict:
    "Our RQ-VAE; the reconstruction is a share of the variance."
    start, rqvae = time.process_time(), RQVAE(preset, "cpu", epochs=epochs, seed=seed)
    sids = rqvae.fit(vectors, progress=False)
    left = sids.quality["reconstruction"] / (vectors - vectors.mean(0)).square().mean().item()
    measured = rqvae.history.dropna().filter(like="utilization_").iloc[:-1]
    return dict(
        report(preset, sids.codes, rqvae.config.codes, left, time.process_time() - start),
        unaided=measured.iloc[-1].mean() if len(measured) else float("nan"),
    )


def lcrec(arm: str, vectors: torch.Tensor, epochs: int, seed: int) -> dict:
    "LC-Rec's recipe around a ResidualVQ."
    from vector_quantize_pytorch import ResidualVQ

    start, kind, config = time.process_time(), arm.split()[1], rqvae_config("lcrec")
    torch.manual_seed(seed)
    network = RQVAENetwork(config, vectors.shape[1])  # for its encoder and decoder, which are LC-Rec's
    network.quantizer = None
    how = dict(ema=dict(commitment_weight=config.beta), gradient=dict(learnable_codebook=True, ema_update=False))[
        kind.removesuffix("+scale")
    ]
    vq = ResidualVQ(
        dim=config.latent,
        num_quantizers=config.levels,
        codebook_size=config.codes,
        kmeans_init=True,
        kmeans_iters=10,
        rotation_trick=False,
        **how,
    )
    x = (vectors - vectors.mean(0)) / (vectors - vectors.mean(0)).square().mean().sqrt() if kind.endswith("+scale") else vectors
    optimizer = torch.optim.AdamW(
        [*network.parameters(), *vq.parameters()], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    for _ in range(epochs):
        network.train()
        vq.train()
        for rows in torch.randperm(len(x)).tensor_split(math.ceil(len(x) / config.batch_size)):
            quantized, _, commitment = vq(network.encoder(x[rows]))
            loss = F.mse_loss(network.decoder(quantized), x[rows]) + commitment.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    vq.eval()
    with torch.no_grad():
        parts = [vq(network.encoder(part))[:2] for part in x.split(8192)]
        errors = [(network.decoder(q) - part).square().sum().item() for (q, _), part in zip(parts, x.split(8192), strict=True)]
        left = sum(errors) / (x - x.mean(0)).square().sum().item()
    return report(arm, torch.cat([codes for _, codes in parts]), config.codes, left, time.process_time() - start)


def compare(
    name: str,
    vectors: torch.Tensor,
    epochs: int = 200,
    seeds: int = 1,
    arms: list[str] = ("ema", "gradient", "ema+scale", "gradient+scale"),
) -> None:
    "All arms, the mean over seeds, and ours against the best of the others in each measure."
    rows = []
    for seed in range(seeds):
        for arm in ("paper", *(f"lc-rec {arm}" for arm in arms)):
            rows.append((lcrec if " " in arm else ours)(arm, vectors, epochs, seed))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby("arm", sort=False).mean()
    mine, theirs = table.loc["paper"], table.drop(index="paper")
    levels = [c for c in table if c.startswith("utilization")]
    floor = 1 - len(vectors.unique(dim=0)) / len(vectors)
    paper = rqvae_config("paper")
    sizes = f"{paper.levels} x {paper.codes} codes"
    threads = torch.get_num_threads()
    print(f"{name}: {len(vectors)} items, {epochs} epochs, {sizes}, {seeds} seeds, {threads} threads, floor {floor:.4f}")
    print(table.round(4).to_string())
    print(f"collision: paper {mine.collision:.4f}, best of LC-Rec {theirs.collision.min():.4f}")
    print(f"mean utilization: paper {mine[levels].mean():.4f}, best of LC-Rec {theirs[levels].mean(axis=1).max():.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vectors", help="a safetensors file of `vectors` or a folder written by `tokenize` (default: MiniLM vectors of MovieLens-100K)"
    )
    for flag, value, text in [("epochs", 200, "epochs of every arm"), ("seeds", 1, "runs of every arm")]:
        parser.add_argument(f"--{flag}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--arms", nargs="+", default=["ema", "gradient", "ema+scale", "gradient+scale"], help="kinds of LC-Rec arms")
    a = parser.parse_args()
    compare(*load_vectors(a.vectors), a.epochs, a.seeds, a.arms)


if __name__ == "__main__":
    main()
