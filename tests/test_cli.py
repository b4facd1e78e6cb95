"The gti command as users call it."

import json
import subprocess
import sys
from pathlib import Path

import pytest

GTI = Path(sys.executable).parent / "gti"


def gti(*arguments, cwd=None):
    return subprocess.run([str(GTI), *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "outputs" / "demo" / "gti-seed0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps(
            {
                "pipeline": "train",
                "arm": "gti",
                "study": "demo",
                "status": "finished",
                "started": "2026-01-01",
                "seconds": 61.25,
                "parameters": {"init": "mean", "seed": 0},
                "metrics": {"recall@10": 0.0488, "users": 300},
                "versions": {"torch": "2"},
            }
        )
    )
    return tmp_path


def test_help_names_every_command():
    done = gti("--help")
    assert done.returncode == 0 and all(c in done.stdout for c in ("fetch", "run", "study", "runs", "show"))
    assert gti("--version").stdout.startswith("gti 0.")


def test_misuse_has_status_two():
    assert gti().returncode == 2 and gti("rnu").returncode == 2 and gti("run").returncode == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "trian"], "did you mean 'train'?"),
        (["run", "train", "-p", "grounding_step", "5"], "did you mean 'grounding_steps'?"),
        (["run", "train", "-p", "grounding_steps", "many"], "got 'many' (str), allowed: int"),
        (["run", "train", "-p", "sft_learning_rate", "fast"], "allowed: float"),
        (["run", "train", "-p", "save_model", "7"], "allowed: bool"),
        (["run", "train", "-p", "sft.packng", "7"], "did you mean 'packing'?"),
        (["run", "train", "-p", "sft.packing", "many"], "got 'many'"),
        (["run", "train", "-p", "sft.packing", "-1"], "packing: got -1"),
        (["run", "train", "-p", "sft_steps", "5", "-p", "sft.steps", "6"], "sft_steps: set twice"),
        (["run", "train", "-p", "sft_steps", "5", "-p", "sft_steps", "6"], "-p 'sft_steps': set twice"),
        (["run", "train", "-p", "sft.weights", "3", "-p", "sft.weights.sequence", "1"], "sft.weights: set twice, as 3"),
        (["run", "train", "-p", "base", ""], "model: got ''"),
        (["run", "train", "-p", "base", "."], "no config.json in it"),
        (["run", "train", "-p", "base", "~nobody-of-this-name/model"], "~nobody-of-this-name"),
        (["run", "tokenize", "-p", "codes", "0"], "codes"),
        (["run", "train", "-p", "init", "maen"], "did you mean 'mean'?"),
        (["run", "train", "-p", "evaluation_split", "tset"], "did you mean 'test'?"),
        (["run", "train", "-p", "precision", "fp16"], "allowed: 'auto', 'bf16', 'fp32'"),
        (["study", "none.yaml"], "none.yaml: no such file"),
        (["show", "none"], "not a run folder"),
        (["runs", "none"], "no such folder"),
        (["fetch", "smollm"], "did you mean 'smollm2-135m'?"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(tmp_path, arguments, message):
    done = gti(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.startswith("gti: ") and done.stderr.count("\n") == 1 and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("arms: {mean: {}}\nseed: [0]", "did you mean 'seeds'?"),
        ("arms: {mean: {init: meen}}", "arm mean: initializer: got 'meen'"),
        ("arms: {mean: {}, gti: {grounding_step: 5}}", "did you mean 'grounding_steps'?"),
        ("arms: {mean: {}}\ntokenize: {levls: 3}", "did you mean 'levels'?"),
        ("arms: {mean: {}}\nbaseline: man", "did you mean 'mean'?"),
        ("arms: {gti: {}}", "baseline: got 'mean', allowed: 'gti'"),
        ("arms: {mean: {}}\nseeds: [zero]", "seeds: got 'zero', allowed: a whole number"),
        ("arms: {}", "arms: none given"),
        ("arms: {mean: {}}\nseeds: [-1]", "seeds: got -1, allowed: a whole number from 0"),
        ("arms: {mean: {sft: {weight_decay: '1e-3'}}}", "write the number 1e-3 without quotes"),
        ("arms: {mean: {grounding: {soften: -1}, grounding_steps: 5}}", "soften: got -1"),
        ("arms: {mean: {}}\ntokenize: {quantizer_options: {iteration: 5}}", "did you mean 'iterations'?"),
        ("", "expected a mapping with name"),
        ("- a", "expected a mapping with name"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_study_is_checked_as_a_whole(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    done = gti("study", "s.yaml", cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]


def test_runs_and_show(outputs):
    index = gti("runs", cwd=outputs)
    assert index.returncode == 0 and "outputs/demo/gti-seed0" in index.stdout and "0.0488" in index.stdout and "finished" in index.stdout
    one = gti("show", "outputs/demo/gti-seed0", cwd=outputs)
    assert one.returncode == 0 and "status: finished" in one.stdout and "recall@10: 0.0488" in one.stdout and "init: mean" in one.stdout


@pytest.mark.parametrize("study", sorted((Path(__file__).parent.parent / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_that_come_with_it_are_valid(study):
    from gti_nb.runs.study import read_study

    assert read_study(study).name == study.stem


def test_the_grammar_of_uris_is_not_compiled(tmp_path):
    code = "import sys; from gti_nb.cli import main; main(['run', 'none.ipynb']); import jsonschema; print(sys.modules['rfc3987_syntax'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr
