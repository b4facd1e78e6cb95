"""How well held-out items are found by their text, before and after grounding, from several starts.

How many of their semantic IDs are among the ten likeliest? Is that ten times as many as from the mean start, and three
times as many as from the best start?

    OMP_NUM_THREADS=1 python benchmarks/grounding_quality.py --out FOLDER/movielens.csv
        # MovieLens-100K, 135 held-out films
    OMP_NUM_THREADS=1 python benchmarks/grounding_quality.py --data FOLDER --templates title_to_sid --holdout .05
        # any folder that load_dataset takes; items asked for by title

No start reads the text of a held-out item. Three lines of the table are not starts, and training does not change them:
chance     any semantic ID of the catalogue
readout    a ridge regression, fitted to the training items, from the frozen model's state after the prompt to the item's
           vector; the semantic IDs nearest to the predicted vector
own vector the semantic IDs nearest to the item's own vector: below 1 where resolving collisions moved codes or added a
           level that no text can predict
"""

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch

from gti_nb.assets import load_base
from gti_nb.core import pick_dtype
from gti_nb.data.dataset import RecDataset, load_dataset
from gti_nb.decode.trie import SidTrie
from gti_nb.grounding import stage
from gti_nb.grounding.loss import GroundingLoss
from gti_nb.grounding.pairs import GroundingPairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.initializers.prior import last_states, text_prompts
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.probe.answers import chance, probe
from gti_nb.probe.grounding import pair_questions
from gti_nb.probe.questions import hits
from gti_nb.prompts import GROUNDING, encode_template
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.kmeans import RQKMeans
from gti_nb.text import encode_text

KS = (1, 5, 10)
STARTS = [
    "mean",
    "ctfidf",
    "ridge",
    "procrustes",
    "additive",
    "procrustes+equal_prior",
    *(f"{name}+centred_scale+equal_prior" for name in ("ridge", "additive", "procrustes")),
]


def hide(dataset: RecDataset, items: list[int]) -> RecDataset:
    "The data set without the texts of some items; starts that read texts leave out items without text."
    frame = dataset.items.copy()
    frame.loc[items, ["title", "description", "categories"]] = ""
    return replace(dataset, items=frame)


class Losses:
    "Makes the losses of all runs; the frozen model's states of the prompts, the same for all, are computed once."

    def __init__(self, extended: ExtendedModel, cache_bytes: float):
        self.prefixes = GroundingLoss(extended, extended.compute_model(pick_dtype("auto", extended.device)), cache_bytes).prefixes

    def __call__(self, *args) -> GroundingLoss:
        loss = GroundingLoss(*args)
        loss.prefixes = self.prefixes
        return loss

    def last_states(self, fixed: tuple[int, ...], prompts: list[list[int]], batch_tokens: int = 512) -> np.ndarray:
        "Last hidden state of every prompt [n, d]; all begin with `fixed`."
        own, states, group = [tuple(p[len(fixed) :]) for p in prompts], {}, []
        self.prefixes.plan([(fixed, text) for text in own] * 2)
        for text in [*sorted(set(own), key=lambda t: (len(t), t)), None]:
            if group and (text is None or (len(group) + 1) * len(text) > batch_tokens):
                found = self.prefixes.states(fixed, group)
                states |= {t: s.hidden.float().cpu().numpy() for t, s in zip(group, found, strict=True)}
                group = []
            group.append(text)
        return np.stack([states[t] for t in own])


def near(sids: SemanticIds, vectors: torch.Tensor, items: list[int]) -> dict[str, float]:
    "Recall of the items' codes and semantic IDs among those nearest to some vectors; ties are ordered at random."
    trie, vectors = SidTrie(sids), vectors.double()
    levels = zip(sids.codebooks, trie.leaves.long().T, strict=True)
    reconstructed = sum(book[codes].double() for book, codes in levels if book.shape[1])  # of every semantic ID
    code = -torch.cdist(vectors, sids.codebooks[0].double())
    sid = -torch.cdist(vectors, reconstructed)
    return {f"code@{k}": hits(code, sids.codes[items, 0], k).mean().item() for k in KS} | {
        f"sid@{k}": hits(sid, trie.leaf_of[items].long(), k).mean().item() for k in KS
    }


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Ridge regression of y on standardized x, with the penalty of least leave-one-out error.

    A penalty shortens the predictions, and distances need their length, so they are stretched to the length of y.
    """
    mean, spread, centre, least = x.mean(0), x.std(0), y.mean(0), np.inf
    x, y = (x - mean) / spread, y - centre
    for penalty in 10.0 ** np.arange(0, 4.5, 0.5):
        solver = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T)
        leverage = np.einsum("ij,ji->i", x, solver)[:, None]
        left_out = (x @ (solver @ y) - leverage * y) / (1 - leverage)
        error = np.square(y - left_out).sum()
        if error < least:
            least, weights = error, solver @ y * np.sqrt(np.square(y).sum() / np.square(left_out).sum())
    return centre + (new - mean) / spread @ weights


def readout(extended: ExtendedModel, losses: Losses, pairs: GroundingPairs, vectors: torch.Tensor, template: str) -> dict[str, float]:
    "How many held-out items a linear map of the frozen states finds."
    train, held = (pair_questions(extended, p, template).texts for p in (pairs.train, pairs.heldout))
    item, new = (p["item"][p.template == template].to_list() for p in (pairs.train, pairs.heldout))
    states = losses.last_states(
        encode_template(extended.tokenizer, GROUNDING[template]).pieces[0], text_prompts(extended, [*train, *held], GROUNDING[template])
    ).astype(np.float64)
    return near(extended.sids, torch.from_numpy(ridge(states[: len(train)], vectors[item].double().numpy(), states[len(train) :])), new)


def measure(a) -> tuple[pd.DataFrame, int]:
    "The table, and how many items are held out."
    dataset = load_dataset(a.data)
    vectors = encode_text(dataset.texts(), progress=False)
    sids = RQKMeans(a.levels, a.codes).fit(vectors).resolve(a.collisions, vectors)
    pairs = grounding_pairs(dataset, sids, a.templates, a.wordings, a.holdout, a.seed)
    asked = next(t for t in a.templates if GROUNDING[t].direction == "text_to_sid")
    extended = ExtendedModel.extend(*load_base(a.base), sids)
    held = sorted(set(pairs.heldout["item"]))
    questions = pair_questions(extended, pairs.heldout, asked)
    shown = hide(dataset, held)
    states = last_states(extended, text_prompts(extended, questions.texts, GROUNDING[asked]))
    losses = Losses(extended, a.cache)

    def quality() -> dict[str, float]:
        return probe(extended, questions, GROUNDING[asked], None, KS, states=states)

    rows = [
        dict(start="chance") | {f"{k} before": v for k, v in chance(extended, questions, KS).items() if "title" not in k},
        dict(start="own vector") | {f"{k} before": v for k, v in near(sids, vectors[held], held).items()},
    ]
    if not a.no_readout:
        rows.append(dict(start="readout") | {f"{k} before": v for k, v in readout(extended, losses, pairs, vectors, asked).items()})
    for name in a.starts:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            initialize(extended, name, dataset=shown, vectors=vectors, seed=a.seed, ask=GROUNDING[asked])
        drawn = [p.detach().clone() for p in extended.new_parameters()]
        before = {f"{k} before": v for k, v in quality().items()}
        arms = a.soften if a.ground is None or name in a.ground else []
        if not arms:
            rows.append(dict(start=name) | before)
        for soften in arms:
            for parameter, rows_at_start in zip(extended.new_parameters(), drawn, strict=True):
                parameter.data.copy_(rows_at_start)
            began = time.process_time()
            config = GroundingConfig(steps=a.steps, learning_rate=a.lr, share_text_to_sid=a.share, soften=soften, seed=a.seed)
            with mock.patch.object(stage, "GroundingLoss", losses):
                ground(extended, pairs, config, progress=False, vectors=vectors)
            spent = time.process_time() - began
            rows.append(dict(start=name, soften=soften) | before | {f"{k} after": v for k, v in quality().items()} | {"CPU s": spent})
        print(
            f"{name}: sid@10 {before['sid@10 before']:.3f}",
            *(f"-> {r['sid@10 after']:.3f} (soften {r['soften']})" for r in rows[-len(arms) :] if arms),
            flush=True,
        )
    return pd.DataFrame(rows), len(questions.texts)


def with_ratios(table: pd.DataFrame, n: int) -> tuple[pd.DataFrame, str]:
    "The table with standard errors and ratios of SID recall@10, and what they are ratios to."
    before = table.set_index("start")["sid@10 before"].groupby(level=0).first()
    after = table["sid@10 after"] if "sid@10 after" in table else np.nan
    starts = before.drop(["chance", "own vector", "readout"], errors="ignore")
    mean, best = before.get("mean", 0), starts.max()
    base = mean or before["chance"]
    over = "that of the mean start before it" if mean else "chance, as the mean start finds none"
    note = (
        f"after / mean: sid@10 after grounding over {over} ({base:.3f}); "
        f"after / best: over that of the best start before it ({starts.idxmax()}, {best:.3f})"
    )
    return table.assign(
        **{"error after": (after * (1 - after) / n) ** 0.5, "after / mean": after / base, "after / best": after / best}
    ), note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="movielens-100k", help="name or folder for load_dataset")
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or hub id for load_base")
    parser.add_argument("--starts", nargs="+", default=STARTS, help="starts: initializers, with or without suffixes")
    parser.add_argument("--ground", nargs="*", help="which of --starts to ground; all when left out")
    parser.add_argument(
        "--templates",
        nargs="+",
        default=["text_to_sid"],
        help="templates of the pairs; the first that goes from text to semantic ID asks for items (default text_to_sid)",
    )
    for name, kind, value, text in [
        ("steps", int, 200, "grounding steps"),
        ("lr", float, 1e-2, "learning rate of grounding"),
        ("share", float, 0.8, "share of steps from text to semantic ID, when templates go both ways"),
        ("wordings", int, 1, "wordings per template"),
        ("levels", int, 2, "codes per item"),
        ("codes", int, 128, "codes per level"),
        ("holdout", float, 0.1, "share of items held out"),
        ("seed", int, 0, "seed of the held-out items, the starts and grounding"),
    ]:
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{text} (default {value})")
    parser.add_argument(
        "--cache",
        type=float,
        default=4e9,
        help="size in bytes of the file for the frozen states of prompts, shared by all runs (default 4e9)",
    )
    parser.add_argument("--collisions", choices=["extra_level", "hungarian"], default="hungarian")
    parser.add_argument(
        "--soften",
        type=float,
        nargs="+",
        default=[0.0, 0.3],
        help="one run per value: 0 grounds on the item's own codes, above 0 all codes near its vector share the target (default 0 and 0.3)",
    )
    parser.add_argument(
        "--no-readout", action="store_true", help="leave out the readout line, which needs a forward pass over the prompts of all items"
    )
    parser.add_argument("--out", help="CSV file for the table")
    a = parser.parse_args()
    began = time.process_time()
    table, n = measure(a)
    table, note = with_ratios(table, n)
    spent = time.process_time() - began
    print(
        f"{Path(a.data).name}, {a.base}, {a.levels} x {a.codes} codes, {a.collisions}; {n} held-out items, "
        f"{', '.join(a.templates)}, {a.steps} steps at {a.lr}; {spent:.0f} s of CPU"
    )
    print(table[[c for c in table if not c.startswith(("code@1 ", "code@5"))]].round(3).to_string(index=False))
    print(note)
    if a.out:
        Path(a.out).parent.mkdir(parents=True, exist_ok=True)
        table.round(4).to_csv(a.out, index=False)


if __name__ == "__main__":
    main()
