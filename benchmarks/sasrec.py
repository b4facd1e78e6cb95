"""Our SASRec against RecBole's: are they the same network, and do they reach the same NDCG?

Both see the same users, items and order, have the same settings, and are evaluated leave-one-out with full ranking.

    # MovieLens-100K, the 20 latest events of a user, as RecBole's atomic files; --data for another data set
    python benchmarks/sasrec.py export FOLDER --max-events 20
    # RecBole needs an environment of its own, since its pinned dependencies conflict with ours
    python3.11 -m venv REC
    REC/bin/pip install torch 'numpy<2' 'pandas<3' scipy scikit-learn tensorboard tabulate texttable thop psutil pyyaml tqdm
    REC/bin/pip install colorlog==4.7.2 colorama==0.4.4
    REC/bin/pip install --no-deps recbole==1.2.1
    OMP_NUM_THREADS=1 REC/bin/python benchmarks/sasrec.py recbole FOLDER --window 20 --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/sasrec.py ours FOLDER --window 20 --seeds 0 1 2
    # all of MovieLens-100K, ours alone, to compare with published figures
    python benchmarks/sasrec.py export WHOLE
    OMP_NUM_THREADS=1 python benchmarks/sasrec.py ours WHOLE --batch 1024

Both use cross entropy over all items, 2 layers, 2 heads, width 64, dropout .5, Adam at 1e-3, and early stopping on the NDCG@10 of the
validation item with 10 epochs of patience. Items that the user already has stay in the ranking, RecBole's rule for sequences.
RecBole makes one row per prefix, padded to the window, with one target. Ours has a target at every position of a window, so an epoch has
the same targets at a fraction of the work. One epoch on all of MovieLens-100K takes RecBole some 200 s on one core, hence --max-events.
Columns with `unseen` leave out items that the user already has, the rule of this library; the models are the same.
`same network` is the largest difference of any score when RecBole's trained weights are put into our network.
"""

import argparse
import json
import os
import sys
import time
import types
from functools import partial
from pathlib import Path

import numpy as np


def load(about: dict):
    "The exported data set, and its split by RecBole's rule: items that the user already has may be listed."
    from dataclasses import replace

    from gti_nb.data.dataset import load_dataset

    dataset = load_dataset(about["data"], k_core=about["k_core"], max_events=about["max_events"])
    return dataset, replace(dataset.leave_one_out(), repeats=True)


def export(folder: Path, about: dict) -> None:
    "Write the data set as RecBole's atomic files; the time of an event is its place in the user's sequence."
    dataset, _ = load(about)
    lines = [f"{user}\t{item}\t{place}" for user, items in enumerate(dataset.sequences) for place, item in enumerate(items)]
    (folder / "exported").mkdir(parents=True)
    (folder / "exported/exported.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]) + "\n")
    (folder / "about.json").write_text(json.dumps(about))
    print(dataset)


def recbole(folder: Path, seed: int, window: int, batch: int, epochs: int) -> None:
    "Train RecBole's SASRec; keep its weights and its scores of all items before the test item [users, items], in our numbering."
    folder = folder.absolute()
    os.chdir(folder)  # RecBole writes its logs to the working directory
    ray = types.ModuleType("ray")
    ray.tune = ray  # RecBole imports it for hyperparameter search, which is not used here
    sys.modules.setdefault("ray", ray)
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    config = Config(
        model="SASRec",
        dataset="exported",
        config_dict=dict(
            data_path=str(folder),
            checkpoint_dir=str(folder / f"checkpoints-{seed}"),
            seed=seed,
            epochs=epochs,
            show_progress=False,
            train_neg_sample_args=None,
            train_batch_size=batch,
            MAX_ITEM_LIST_LENGTH=window,
            load_col={"inter": ["user_id", "item_id", "timestamp"]},
            eval_args=dict(split={"LS": "valid_and_test"}, order="TO", mode="full", group_by="user"),
            valid_metric="NDCG@10",
            stopping_step=10,
            metrics=["Recall", "NDCG"],
            topk=[5, 10, 20],
        ),
    )
    init_seed(seed, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    model = SASRec(config, train.dataset).to(config["device"])
    start = time.perf_counter()
    trainer = Trainer(config, model)
    trainer.fit(train, valid, saved=True, show_progress=False)
    seconds = time.perf_counter() - start
    model.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    model.eval()
    columns = np.array([int(token) for token in dataset.id2token("item_id", np.arange(1, dataset.item_num))])
    scores = np.empty((dataset.user_num - 1, dataset.item_num - 1), np.float32)
    with torch.no_grad():
        for batch in test:
            users = [int(token) for token in dataset.id2token("user_id", batch[0]["user_id"].numpy())]
            scores[np.ix_(users, columns)] = model.full_sort_predict(batch[0].to(config["device"]))[:, 1:].cpu().numpy()
    weights = {name: p.numpy(force=True) for name, p in model.state_dict().items()}
    weights["item_embedding.weight"] = weights["item_embedding.weight"][1:][np.argsort(columns)]
    np.savez(folder / f"recbole-{seed}.npz", scores=scores, **weights)
    said = dict(
        seconds=seconds,
        epochs=len(trainer.train_loss_dict),
        **{k.lower(): v for k, v in trainer.evaluate(test, load_best_model=False, show_progress=False).items()},
    )
    (folder / f"recbole-{seed}.json").write_text(json.dumps(said))
    print(seed, said, flush=True)


def ported(weights: dict, window: int):
    "Our network with RecBole's weights."
    import torch

    from gti_nb.evaluate.sasrec import SASRec, SASRecConfig

    model = SASRec(len(weights["item_embedding.weight"]), SASRecConfig(window=window))
    state = {
        "items.weight": weights["item_embedding.weight"],
        "places.weight": weights["position_embedding.weight"],
        "norm.weight": weights["LayerNorm.weight"],
        "norm.bias": weights["LayerNorm.bias"],
    }
    for n in range(2):
        ours, theirs = f"encoder.layers.{n}", f"trm_encoder.layer.{n}"
        for kind in ("weight", "bias"):
            projections = [weights[f"{theirs}.multi_head_attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state |= {
                f"{ours}.self_attn.in_proj_{kind}": np.concatenate(projections),
                f"{ours}.self_attn.out_proj.{kind}": weights[f"{theirs}.multi_head_attention.dense.{kind}"],
                f"{ours}.norm1.{kind}": weights[f"{theirs}.multi_head_attention.LayerNorm.{kind}"],
                f"{ours}.linear1.{kind}": weights[f"{theirs}.feed_forward.dense_1.{kind}"],
                f"{ours}.linear2.{kind}": weights[f"{theirs}.feed_forward.dense_2.{kind}"],
                f"{ours}.norm2.{kind}": weights[f"{theirs}.feed_forward.LayerNorm.{kind}"],
            }
    model.load_state_dict({name: torch.tensor(values) for name, values in state.items()})
    return model


def ours(folder: Path, seeds: list[int], window: int, batch: int, epochs: int) -> None:
    "Train our SASRec, and print it with RecBole's and popularity."
    from dataclasses import replace

    import pandas as pd

    from gti_nb.evaluate.baselines import popularity, rank_items
    from gti_nb.evaluate.ranking import evaluate_ranking, metrics
    from gti_nb.evaluate.sasrec import SASRecConfig, sasrec_lists, train_sasrec

    dataset, split = load(json.loads((folder / "about.json").read_text()))
    rows, differences = [], []

    def lists_of_scores(scores, s):
        return rank_items(s, "test", 20, lambda histories: scores, block=s.n_users)

    def add(model: str, seed: int | None, lists, epochs=np.nan, seconds=np.nan) -> None:
        found = {
            f"{name}{rule}": value
            for rule, s in (("", split), (" unseen", replace(split, repeats=False)))
            for name, value in metrics(evaluate_ranking(lists(s), s.test, ks=(10, 20))).items()
            if name != "users"
        }
        rows.append(dict(model=model, seed=seed, **found, epochs=epochs, seconds=seconds))

    add("popularity", None, popularity)
    for seed in seeds:
        if not (folder / f"recbole-{seed}.npz").exists():
            continue
        with np.load(folder / f"recbole-{seed}.npz") as kept:
            weights = dict(kept)
        scores, said = weights.pop("scores"), json.loads((folder / f"recbole-{seed}.json").read_text())
        again = ported(weights, window).score([split.history(u) for u in range(split.n_users)]).numpy()
        differences.append(float(np.abs(again - scores).max()))
        add("recbole", seed, partial(lists_of_scores, scores), said["epochs"], said["seconds"])
        assert abs(rows[-1]["ndcg@10"] - said["ndcg@10"]) < 1e-3, "RecBole's own NDCG@10 differs from the one we compute from its scores"
    for seed in seeds:
        start = time.perf_counter()
        result = train_sasrec(split, SASRecConfig(window=window, batch_size=batch, seed=seed, epochs=epochs), progress=False)
        add("ours", seed, partial(sasrec_lists, result.model), len(result.history), time.perf_counter() - start)
    table = pd.DataFrame(rows)
    print(dataset)
    print(table.round(4).to_string(index=False))
    print(
        table.groupby("model", sort=False)[["recall@10", "ndcg@10", "recall@10 unseen", "ndcg@10 unseen"]]
        .agg(["mean", "min", "max"])
        .round(4)
        .T.to_string()
    )
    if differences:
        print(f"same network: scores differ by {max(differences):.1e} at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["export", "recbole", "ours"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="movielens-100k")
    parser.add_argument("--k-core", type=int, default=5)
    parser.add_argument("--max-events", type=int, help="keep only this many latest events per user")
    parser.add_argument("--window", type=int, default=50, help="latest items the networks see")
    parser.add_argument("--batch", type=int, default=256, help="targets per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=300, help="maximum number of epochs")
    args = parser.parse_args()
    if args.what == "export":
        export(args.folder, dict(data=args.data, k_core=args.k_core, max_events=args.max_events))
    elif args.what == "ours":
        ours(args.folder, args.seeds, args.window, args.batch, args.epochs)
    else:
        for seed in args.seeds:
            recbole(args.folder, seed, args.window, args.batch, args.epochs)


if __name__ == "__main__":
    main()
