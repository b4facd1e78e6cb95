"""What every start of the new tokens knows before training.

The benchmark runs `compare_initializers` on a catalogue (semantic IDs) or on tools (one new token each, with queries as questions).

OMP_NUM_THREADS=1 python benchmarks/initializers.py                 # MovieLens-100K, SmolLM2-135M, 64 titles
OMP_NUM_THREADS=1 python benchmarks/initializers.py --tools FOLDER --questions 200 --no-titles
                                                                    # items.parquet and queries.parquet, as in MetaTool
"""

import argparse
import time
from pathlib import Path

import numpy as np

from gti_nb.assets import load_base
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.figures.initializers import initializer_figure
from gti_nb.figures.style import save_figure
from gti_nb.initializers.lexical import word_vectors
from gti_nb.initializers.registry import INITIALIZERS
from gti_nb.model.extended import ExtendedModel
from gti_nb.probe.questions import Questions, described_questions, item_questions
from gti_nb.probe.starts import compare_initializers
from gti_nb.prompts import Template
from gti_nb.sid.kmeans import RQKMeans
from gti_nb.text import encode_text

ASK = Template("query_to_tool", "Which tool is the right one for this request?\n{text}", "{sid}")
TELL = Template("tool_to_description", "What does this tool do?\n{sid}", "{title}", end=True)
SUFFIXED = [f"{name}+equal_prior" for name in ("text_mean", "ctfidf", "focus", "wechsel", "ridge", "procrustes", "additive")] + [
    "text_mean+centred_scale",
    "ctfidf+centred_scale+equal_prior",
    "procrustes+centred_scale",
    "additive+centred_scale+equal_prior+level_offset",
]


def catalogue(a) -> tuple[ExtendedModel, Questions, dict]:
    "A data set with semantic IDs, and titles to ask for."
    dataset = load_dataset(a.data)
    vectors = encode_text(dataset.texts(), progress=False)
    sids = RQKMeans(a.levels, a.codes).fit(vectors).resolve("extra_level")
    return (
        ExtendedModel.extend(*load_base(a.base), sids),
        item_questions(dataset, sids, a.questions),
        dict(dataset=dataset, vectors=vectors),
    )


def tools(a) -> tuple[ExtendedModel, Questions, dict]:
    "One new token per tool, and test queries that one tool answers."
    data = load_queries(a.tools)
    names = [f"<tool_{i}>" for i in range(data.n_items)]
    extended = ExtendedModel.extend(*load_base(a.base), dict(zip(names, data.texts(), strict=True)))
    single = [q for q in data.rows("test") if len(data.relevant[q]) == 1]
    chosen = np.sort(np.random.default_rng(0).permutation(single)[: a.questions])
    return (
        extended,
        described_questions(extended, [(data.queries["query"][q], names[data.relevant[q][0]]) for q in chosen]),
        dict(ask=ASK, tell=TELL),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="movielens-100k", help="name or folder for load_dataset")
    parser.add_argument("--tools", help="folder with items.parquet and queries.parquet, instead of --data")
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or hub id for load_base")
    for name, value, text in [
        ("questions", 64, "titles or queries asked"),
        ("levels", 3, "codes per item"),
        ("codes", 64, "codes per level"),
        ("words", 20_000, "vocabulary words for focus and wechsel"),
    ]:
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--names", nargs="*", help="starts; by default all initializers, and some with suffixes")
    parser.add_argument("--no-titles", action="store_true", help="ask only from text to tokens; titles take most of the time")
    parser.add_argument("--out", help="folder for table.csv and the figure")
    a = parser.parse_args()
    started = time.process_time()
    extended, questions, given = tools(a) if a.tools else catalogue(a)
    if a.no_titles:
        given["tell"] = None
    suffixed = [n for n in SUFFIXED if not (a.tools and "level_offset" in n)]
    names = a.names or [n for n in INITIALIZERS if n != "from_checkpoint"] + suffixed
    table = compare_initializers(extended, names, questions, words=word_vectors(extended.tokenizer, limit=a.words), **given)
    spent = time.process_time() - started
    print(f"{a.tools or a.data}, {a.base}: {extended.n_new} new tokens, {len(questions.texts)} questions, {spent:.0f} s of CPU")
    print(table.drop(columns=["kl", "safe"]).round(3).to_string())
    if a.out:
        Path(a.out).mkdir(parents=True, exist_ok=True)
        table.to_csv(Path(a.out) / "table.csv")
        save_figure(initializer_figure(table), a.out, "initializers")


if __name__ == "__main__":
    main()
