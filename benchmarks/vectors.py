"""The vectors that benchmarks of quantizers share."""

from pathlib import Path

import safetensors.torch
import torch

from gti_nb.data.dataset import load_dataset
from gti_nb.text import encode_text


def load_vectors(source: str | None) -> tuple[str, torch.Tensor]:
    """A name and float32 vectors.

    `source` is a safetensors file of `vectors` or a folder written by `gti_nb.tokenize`; None gives MiniLM vectors of MovieLens-100K.
    """
    if source is None:
        return "movielens-100k", encode_text(load_dataset("movielens-100k").texts(), progress=False)
    path = Path(source)
    return path.stem, safetensors.torch.load_file(path / "vectors.safetensors" if path.is_dir() else path)["vectors"].float()
