"The pipelines on tiny settings, through real papermill and a real kernel."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from gti_nb.result import ArmResult
from gti_nb.runs.folder import find_runs, read_run, runs
from gti_nb.sft.tasks import TASKS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def study(outputs, *more):
    return subprocess.run(
        [str(BIN / "gti"), "study", str(ROOT / "studies" / "tiny.yaml"), "--out-dir", str(outputs), *more], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "The tiny study, run once: its folder and what the command said."
    outputs = tmp_path_factory.mktemp("outputs")
    said = study(outputs)
    assert said.returncode == 0, said.stderr
    return outputs / "tiny", said


def rows(folder, stage):
    "The new rows that a run saved after a stage."
    return safe_open(folder / "rows" / f"{stage}.safetensors", "np").get_tensor("rows")


def of(folder, pipeline, arm=None):
    "The run of a pipeline, or of one arm, in a study's folder."
    return next(r for r in find_runs(folder) if r.record["pipeline"] == pipeline and r.record.get("arm") == arm)


def test_it_ends_with_a_table_and_the_report(done):
    folder, said = done
    for text in ("mean", "gti", "popularity", "transitions", "recall@10", "report.html"):
        assert text in said.stdout
    assert sorted(r.record["pipeline"] for r in find_runs(folder)) == ["report", "tokenize", "train", "train"]
    assert set(runs(folder).status) == {"finished"}


def test_a_training_keeps_everything(done):
    for arm, stages in [("mean", ["init", "sft"]), ("gti", ["init", "grounding", "sft"])]:
        run = of(done[0], "train", arm)
        for stage in stages:
            with safe_open(run.folder / "rows" / f"{stage}.safetensors", "np") as f:
                new_rows = f.get_tensor("rows")
                names = json.loads(f.metadata()["token_names"])
            assert len(new_rows) == len(names) and np.isfinite(new_rows).all() and names[0] == "<a_0>"
        assert sorted(p.stem for p in (run.folder / "rows").iterdir()) == sorted(stages)
        losses = pd.DataFrame(json.loads((run.folder / "losses.json").read_text()))
        assert losses.groupby("stage").step.nunique().to_dict() == ({"sft": 6} if arm == "mean" else {"grounding": 4, "sft": 6})
        result = ArmResult.load(run.folder)
        assert len(result.per_user) == 30 == result.metrics["users"]
        assert result.metrics["recall@10"] == pytest.approx(result.per_user["recall@10"].mean())
        assert list(result.diagnostics) == stages and list(result.stages) == [*stages, "evaluation"]
        assert run.record["metrics"] == result.metrics and set(run.record["hashes"]) == {"data", "sids", "pretrained_rows"}
        for stage in run.record["stages"].values():
            assert stage["seconds"] > 0
        assert not [p for p in run.folder.iterdir() if p.name.startswith(".")]


def test_arms_share_data_and_start(done):
    mean, gti = of(done[0], "train", "mean"), of(done[0], "train", "gti")
    for shared in ("data", "sids", "pretrained_rows"):
        assert mean.record["hashes"][shared] == gti.record["hashes"][shared]
    start, same_start, grounded = rows(mean.folder, "init"), rows(gti.folder, "init"), rows(gti.folder, "grounding")
    assert (start == same_start).all() and not (same_start == grounded).all()


def test_the_report_holds_tables_and_live_figures(done):
    report = of(done[0], "report").folder
    page = (report / "report.html").read_text()
    assert page.count("Plotly.newPlot(") >= 6 and "transitions" in page and "Traceback" not in page
    table = pd.read_csv(report / "metrics.csv", index_col="arm")
    assert (
        list(table.index) == ["mean", "gti", "popularity", "repeat-last", "transitions", "item-knn", "text-knn"]
        and (table.users == 30).all()
    )
    assert (
        list(pd.read_csv(report / "sids.csv", index_col="arm").index) == ["mean", "gti"]
        and (pd.read_csv(report / "lists.csv").duplicates == 0).all()
        and {"popularity", "history"} == set(pd.read_csv(report / "slices.csv").by)
    )
    assert set(pd.read_csv(report / "grounding_quality.csv").asked) == {"held out", "trained", "chance"}
    assert {"metrics", "intervals", "loss-sft", "spectrum", "cosines", "spread"} <= {p.stem for p in (report / "figures").glob("*.html")}
    results = json.loads((report / "results.json").read_text())
    assert len(results["metrics"]) == 7 and len(results["sids"]) == 2 and {r["arm"] for r in results["comparison"]} == {"mean", "gti"}


def test_a_second_call_reuses_everything(done):
    folder, _ = done
    before = sorted(folder.rglob("*"))
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    again = study(folder.parent)
    assert again.returncode == 0 and again.stderr.count("reusing") == 4
    assert sorted(folder.rglob("*")) == before and {p: p.stat().st_mtime_ns for p in times} == times


def test_a_study_that_was_moved_is_still_recognized(done, tmp_path):
    import shutil

    shutil.copytree(done[0], tmp_path / "tiny")
    again = study(tmp_path)
    assert again.returncode == 0 and again.stderr.count("reusing") == 4


def test_plain_papermill(tmp_path):
    settings = {
        "base": "tiny-gpt2",
        "init": "mean",
        "sft_steps": 2,
        "grounding_steps": 2,
        "grounding_batch_size": 2,
        "sft_batch_size": 2,
        "evaluation_history": 3,
        "precision": "fp32",
        "device": "cpu",
        "save_model": True,
        "out_dir": tmp_path / "out",
    }
    done = subprocess.run(
        [
            str(BIN / "papermill"),
            str(ROOT / "nbs" / "pipelines" / "train.ipynb"),
            str(tmp_path / "out.ipynb"),
            *map(str, given(settings)),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = read_run(tmp_path / "out")
    assert run.status == "finished" and run.record["base"] == "tiny-gpt2" and Path(run.record["tokens_dir"]).is_dir()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert len(tokenizer("<a_0>", add_special_tokens=False).input_ids) == 1
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)


def gti(*arguments):
    return subprocess.run([str(BIN / "gti"), *map(str, arguments)], capture_output=True, text=True)


def given(settings):
    "Parameters as options of the command line."
    return [option for name, value in settings.items() for option in ("-p", name, value)]


TINY = given({"base": "tiny-llama", "precision": "fp32", "device": "cpu", "sft_batch_size": 4})


def test_search_from_queries_to_metrics(tmp_path):
    from gti_nb.data.queries import load_queries

    wishes = load_queries("toy")
    wishes.save(tmp_path / "data")
    made = gti("run", "tokenize", "-p", "data", tmp_path / "data", "-p", "levels", 2, "-p", "codes", 8, "--out-dir", tmp_path / "tokens")
    assert made.returncode == 0, made.stderr[-2000:]
    settings = {"tokens_dir": tmp_path / "tokens", "grounding_steps": 3, "sft_steps": 4, "sft.eval_steps": 2, "evaluation.exact_users": 3}
    ran = gti("run", "train", *TINY, *given(settings), "--out-dir", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr[-2000:]
    folder, result = tmp_path / "out", ArmResult.load(tmp_path / "out")
    assert {"recall@1", "recall@5", "precision@1", "ndcg@10"} <= set(result.metrics) and result.metrics["users"] == len(wishes.rows("test"))
    assert [point["step"] for point in result.validation["curve"]] == [2, 4]
    assert result.evaluation.lists["invalid"] == result.evaluation.lists["duplicates"] == 0
    assert list(result.evaluation.agreement.k) == [1, 5, 10] and not (folder / "checkpoints").exists()
    assert list(result.per_user.index) == sorted(wishes.rows("test")) and not (folder / "per_user_sid.parquet").exists()
    told = gti("run", "report", "-p", "runs", f"[{tmp_path / 'out'}]", "--out-dir", tmp_path / "report")
    assert told.returncode == 0, told.stderr[-2000:]
    assert (
        list(pd.read_csv(tmp_path / "report" / "metrics.csv").arm) == ["mean+grounding3", "tf-idf", "tf-idf, asked"]
        and (tmp_path / "report" / "figures" / "validation.html").exists()
    )


def test_tasks_and_presets(tmp_path):
    settings = {"sft_preset": "lcrec", "sft_steps": 3, "evaluation.measures": "[recall, mrr]", "evaluation.ks": "[3]", "save_model": "true"}
    ran = gti("run", "train", *TINY, *given(settings), "--out-dir", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr[-2000:]
    run, result = read_run(tmp_path / "out"), ArmResult.load(tmp_path / "out")
    assert set(result.metrics) == {"recall@3", "mrr@3", "users"} and set(result.evaluation.sid_metrics) >= {"sid_recall@3", "level1@3"}
    tasks = set()
    for record in json.loads((run.folder / "losses.json").read_text()):
        tasks |= set(record.get("tasks", [record["direction"]]))
    assert 2 <= len(tasks) <= 7 and tasks <= set(TASKS) and "arXiv 2604.02324" in (run.folder / "model" / "README.md").read_text()
    assert set(result.evaluation.slices.by) == {"popularity", "history"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sft_tasks": "[retrieval, search]"}, "search: needs queries"),
        ({"sft": "{packng: 4}"}, "did you mean 'packing'"),
        ({"sft_mode": "qlora"}, "needs a CUDA GPU"),
        ({"sft_tasks": "[item2index]", "sft.weights": "{retrieval: 1}"}, "weights: task"),
        ({"sft_tasks": "[retreival]"}, "did you mean 'retrieval'"),
        ({"sft.early_stopping_patience": 2}, "set eval_steps too"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_training(tmp_path, settings, message):
    ran = gti("run", "train", *TINY, *given(settings | {"grounding_steps": 3}), "--out-dir", tmp_path / "out")
    assert ran.returncode == 1 and message in ran.stderr, ran.stderr[-2000:]
    assert not (tmp_path / "out" / "rows").exists()


def test_a_killed_training_resumes_where_it_was(tmp_path):
    arguments = ["run", "train", *TINY, "-p", "grounding_steps", 4, "-p", "sft_steps", 60, "-p", "save_steps", 5, "--out-dir"]
    one_thread = dict(os.environ, OMP_NUM_THREADS="1")
    whole = subprocess.run(
        [str(BIN / "gti"), *map(str, arguments), str(tmp_path / "whole")], capture_output=True, text=True, env=one_thread
    )
    assert whole.returncode == 0, whole.stderr[-2000:]
    victim = subprocess.Popen(
        [str(BIN / "gti"), *map(str, arguments), str(tmp_path / "killed")],
        stderr=subprocess.DEVNULL,
        env=one_thread,
        start_new_session=True,
    )
    kept, end = tmp_path / "killed" / "checkpoints" / "sft" / "checkpoints", time.monotonic() + 120
    while not list(kept.glob("step-*")):
        assert victim.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    kernels = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == victim.pid]
    for pid in [victim.pid, *kernels]:
        os.kill(pid, signal.SIGKILL)
    victim.wait()
    assert list(kept.glob("step-*")) and read_run(tmp_path / "killed").status == "crashed"
    again = subprocess.run(
        [str(BIN / "gti"), *map(str, arguments), str(tmp_path / "killed")], capture_output=True, text=True, env=one_thread
    )
    assert again.returncode == 0, again.stderr[-2000:]
    resumed, uninterrupted = ArmResult.load(tmp_path / "killed"), ArmResult.load(tmp_path / "whole")
    assert (rows(tmp_path / "whole", "sft") == rows(tmp_path / "killed", "sft")).all() and resumed.metrics == uninterrupted.metrics
    assert resumed.resumed and not uninterrupted.resumed


def _parent(process: Path) -> int | None:
    "The parent of a process in /proc; None when it is gone."
    try:
        return int(process.joinpath("stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def test_quantizers_are_ranked_and_kept(tmp_path):
    network = "{quantizer: rqvae, hidden: [16], latent: 4, epochs: 4}"
    settings = {"data": "toy", "levels": 2, "codes": 8, "seeds": "[0, 1]", "choices": f"[random, rqkmeans, {network}]"}
    ran = gti("run", "quantizers", *given(settings), "--out-dir", tmp_path / "out", "--html")
    assert ran.returncode == 0, ran.stderr[-2000:]
    out, labels = tmp_path / "out", ["random", "rqkmeans", "rqvae hidden=[16] latent=4 epochs=4"]
    ranking, seeds, levels = (pd.read_csv(out / f"{n}.csv") for n in ("ranking", "seeds", "levels"))
    assert sorted(ranking.quantizer) == labels and ranking["rank"].tolist() == [1, 2, 3] and ranking.neighbours.is_monotonic_decreasing
    assert sorted(zip(seeds.quantizer, seeds.seed, strict=True)) == [(label, seed) for label in labels for seed in (0, 1)]
    assert sorted(zip(levels.quantizer, levels.level, strict=True)) == [(label, level) for label in labels for level in "ab"]
    for row in ranking.itertuples():
        assert row.neighbours == pytest.approx(seeds[seeds.quantizer == row.quantizer].neighbours.mean())
    assert {"ranking", "residual", "tree", "training-1"} <= {p.stem for p in (out / "figures").glob("*.html")}
    run = read_run(out)
    assert run.status == "finished" and run.record["metrics"]["best"] == ranking.quantizer[0]
    assert (out / "quantizers.html").read_text().count("Plotly.newPlot(") >= 4


def test_one_quantizer_and_what_its_run_keeps(tmp_path):
    settings = {
        "data": "toy",
        "levels": 2,
        "codes": 8,
        "quantizer": "rqvae",
        "quantizer_options": "{hidden: [16], latent: 4, epochs: 4}",
        "template": "title+categories",
        "collisions": "sinkhorn",
    }
    ran = gti("run", "tokenize", *given(settings), "--out-dir", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert {"codes", "residual", "tree", "training"} <= {p.stem for p in (tmp_path / "out" / "figures").glob("*.html")}
    report = json.loads((tmp_path / "out" / "tokens" / "report.json").read_text())
    assert (
        report["parameters"]["quantizer"] == "rqvae"
        and report["parameters"]["template"] == "title+categories"
        and report["card"]["policy"] == "sinkhorn"
    )
    assert read_run(tmp_path / "out").record["hashes"]["sids"] == report["sids"]["content_hash"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("quantizer", "rqkmean", "did you mean 'rqkmeans'"),
        ("collisions", "hungry", "allowed: 'none'"),
        ("quantizer_options", "[1]", "allowed: dict"),
        ("precision", "half", "allowed: 'auto'"),
    ],
)
def test_misspelt_settings_start_no_kernel(tmp_path, capsys, name, value, message):
    from gti_nb.cli import main

    assert main(["run", "tokenize", "-p", name, value, "--out-dir", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("study", sorted(p.stem for p in (ROOT / "studies").glob("*.yaml")))
def test_studies_say_what_the_tokenize_pipeline_takes(study):
    from gti_nb.runs.study import read_study

    assert set(read_study(ROOT / "studies" / f"{study}.yaml").tokenize) <= {"data", "encoder", "levels", "codes", "collisions", "seed"}


@pytest.mark.parametrize("pipeline", ["tokenize", "quantizers", "train", "report"])
def test_every_parameter_is_described(pipeline):
    from gti_nb.runs.parameters import pipeline_parameters, pipeline_path

    spec = pipeline_parameters(pipeline_path(pipeline))
    assert "out_dir" in spec and all(p.help for p in spec.values())
    first = next(c for c in nbformat.read(pipeline_path(pipeline), 4).cells if c.cell_type == "code")
    assert first.metadata.tags == ["parameters"]
