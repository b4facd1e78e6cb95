"""How well grounded described tokens find the right tool, compared with TF-IDF.

There is one new token per tool, grounded on the descriptions and on a few training queries per tool, then asked with
test queries. TF-IDF reads the same texts.

    OMP_NUM_THREADS=1 python benchmarks/new_tokens.py FOLDER        # items.parquet and queries.parquet, as in MetaTool
    OMP_NUM_THREADS=1 python benchmarks/new_tokens.py FOLDER --queries 5 --names ctfidf ctfidf+equal_prior

P@1: the first tool is a right one. R@5: share of the right tools among the first five. Ties count as if they were
ordered at random, so the mean start, which knows nothing, does exactly as well as chance.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from gti_nb.assets import load_base
from gti_nb.data.queries import QueryDataset, load_queries
from gti_nb.evaluate.baselines import tfidf_search
from gti_nb.grounding.pairs import described_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.initializers.prior import last_states, text_prompts
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.probe.answers import code_scores
from gti_nb.probe.questions import hits
from gti_nb.prompts import Template

ASK = Template("query_to_tool", "Which tool is the right one for this request?\n{text}", "{sid}")
TELL = Template("tool_to_text", "What is this tool for?\n{sid}", "{text}", end=True)


def part(data: QueryDataset, rows: np.ndarray) -> QueryDataset:
    "The same tools with some of the queries."
    return replace(data, queries=data.queries.iloc[rows], relevant=[data.relevant[q] for q in rows], grades=[data.grades[q] for q in rows])


def figures(scores: torch.Tensor, relevant: list[np.ndarray]) -> dict[str, float]:
    "P@1 and R@5 of scores [queries, tools]."
    query = np.repeat(np.arange(len(relevant)), [len(r) for r in relevant])
    right = torch.tensor(np.concatenate(relevant))
    first, five = (pd.Series(hits(scores[query], right, k).numpy()).groupby(query) for k in (1, 5))
    return {"P@1": first.sum().mean(), "R@5": five.mean().mean()}


def tfidf(data: QueryDataset, asked: bool) -> dict[str, float]:
    "P@1 and R@5 of TF-IDF."
    lists = torch.tensor(tfidf_search(data, width=data.n_items, asked=asked))
    scores = torch.zeros(lists.shape).scatter(1, lists, -torch.arange(data.n_items).float().expand(lists.shape))
    return figures(scores, [data.relevant[q] for q in data.rows("test")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder with items.parquet and queries.parquet, for load_queries")
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or hub id for load_base")
    parser.add_argument(
        "--queries",
        type=int,
        nargs="+",
        default=[0, 1, 10],
        help="training queries per tool; 0 grounds on descriptions alone (default 0, 1 and 10)",
    )
    parser.add_argument("--names", nargs="+", default=["mean", "ctfidf+equal_prior"], help="starts")
    for name, kind, value, text in [
        ("questions", int, 300, "test queries asked"),
        ("steps", int, 300, "grounding steps"),
        ("share", float, 0.95, "share of steps that go from text to tool"),
        ("rate", float, 3e-3, "learning rate"),
        ("seed", int, 0, "seed of all draws"),
    ]:
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{text} (default {value})")
    a = parser.parse_args()
    started = time.process_time()
    data = load_queries(a.folder)
    names = [f"<tool_{i}>" for i in range(data.n_items)]
    extended = ExtendedModel.extend(*load_base(a.base), dict(zip(names, data.texts(), strict=True)))
    chosen = np.sort(np.random.default_rng(a.seed).permutation(data.rows("test"))[: a.questions])
    test = part(data, chosen)
    # no new token is in these prompts, so their states are the same before and after grounding
    states = last_states(extended, text_prompts(extended, test.queries["query"], ASK))

    def found() -> dict[str, float]:
        return figures(code_scores(extended, states), test.relevant)

    drawn = data.pairs("train").sample(frac=1, random_state=a.seed).groupby("item")
    line = {("descriptions", "TF-IDF"): tfidf(test, asked=False)}
    for name in a.names:
        initialize(extended, name, seed=a.seed, ask=ASK)
        line["descriptions", f"{name}, not grounded"] = found()
    for n in a.queries:
        more = drawn.head(n)
        label = f"descriptions, queries per tool: {n}" if n else "descriptions"
        if n:
            line[label, "TF-IDF"] = tfidf(part(data, np.concatenate([more["query"].unique(), chosen])), asked=True)
        for name in a.names:
            initialize(extended, name, seed=a.seed, ask=ASK)
            known = [(text, names[i]) for text, i in zip(more["text"], more["item"], strict=True)]
            pairs = described_pairs(extended, known, ASK, TELL, holdout=0)
            config = GroundingConfig(steps=a.steps, share_text_to_sid=a.share, learning_rate=a.rate, seed=a.seed)
            ground(extended, pairs, config, progress=False)
            line[label, f"{name}, grounded"] = found()
    spent = time.process_time() - started
    print(f"{a.folder}, {a.base}: {data.n_items} new tokens, {len(test.relevant)} test queries, {a.steps} steps, {spent:.0f} s of CPU")
    print(pd.DataFrame(line).T.rename_axis(["texts", "model"]).round(3).to_string())


if __name__ == "__main__":
    main()
