"Notebooks run without `gti`: they begin and end their folder by the same lock and the same checks."

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest

from gti_nb.core import GTIError, write_json
from gti_nb.core.locks import lock_folder, release_folder
from gti_nb.runs.execute import run
from gti_nb.runs.folder import begin_run, read_run, record_facts

ROOT = Path(__file__).parents[2]
PAPERMILL = [sys.executable, "-m", "papermill", "--no-progress-bar", "--log-level", "ERROR"]


def notebook(folder, *cells):
    "A pipeline that begins and ends its run."
    parameters = v4.new_code_cell('steps: int = 3  # how many\nout_dir: str = ""  # results')
    parameters.metadata["tags"] = ["parameters"]
    begin = "from gti_nb.runs.folder import begin_run, record_facts\nout = begin_run(out_dir, 'job', dict(steps=steps))"
    end = "(out / 'result.txt').write_text(str(steps)); record_facts(out_dir, 'job', dict(steps=steps), tokens_dir='here')"
    path = folder / "job.ipynb"
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    nbformat.write(v4.new_notebook(cells=[parameters, *map(v4.new_code_cell, (begin, *cells, end))], metadata=kernel), path)
    return path


def by_hand(path, executed, out, **parameters):
    given = [option for name, value in (parameters | {"out_dir": out}).items() for option in ("-p", name, str(value))]
    return subprocess.run([*PAPERMILL, str(path), str(executed), *given], capture_output=True, text=True)


def content(folder):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_one_notebook_by_gti_and_by_hand(tmp_path):
    path, out = notebook(tmp_path), tmp_path / "out"
    done = run(path, {"steps": 5}, out, quiet=True)
    assert done.status == "finished" and done.record["tokens_dir"] == "here" and "by_hand" not in done.record
    before = content(out)
    for steps in (5, 6):  # its own settings, and others
        said = by_hand(path, tmp_path / "executed.ipynb", out, steps=steps)
        assert said.returncode != 0 and "holds a finished run, in which nothing was changed" in said.stderr
        assert content(out) == before
    by = tmp_path / "by"
    by.mkdir()
    said = by_hand(path, by / "job.ipynb", by, steps=4)  # the executed notebook is there before the run
    assert said.returncode == 0, said.stderr[-2000:]
    made = read_run(by)
    assert made.status == "finished" and made.record["by_hand"] and made.record["tokens_dir"] == "here" and made.parameters["steps"] == 4
    with pytest.raises(GTIError, match="made by hand"):
        run(path, {"steps": 4}, by, quiet=True)


@pytest.mark.parametrize("pipeline", ["train", "tokenize", "quantizers", "report"])
def test_every_pipeline_begins_before_it_writes(pipeline):
    cells = nbformat.read(ROOT / "nbs" / "pipelines" / f"{pipeline}.ipynb", 4).cells
    sources = [c.source for c in cells if c.cell_type == "code"]
    begins = next(i for i, s in enumerate(sources) if f'begin_run(out_dir, "{pipeline}", parameters)' in s)
    writes = [i for i, s in enumerate(sources) if "out /" in s or "mkdir" in s]
    assert begins == 1 and min(writes) >= begins and "record_facts(" in sources[-1]


def test_train_by_hand_into_a_finished_run_changes_nothing(tmp_path):
    write_json(tmp_path / "out" / "run.json", {"pipeline": "train", "status": "finished", "key": "a1", "parameters": {}})
    write_json(tmp_path / "out" / "metrics.json", {"recall@10": 0.1})
    before = content(tmp_path / "out")
    said = by_hand(
        ROOT / "nbs" / "pipelines" / "train.ipynb", tmp_path / "executed.ipynb", tmp_path / "out", base="tiny-llama", device="cpu"
    )
    assert said.returncode != 0 and "holds a finished run, in which nothing was changed" in said.stderr, said.stderr[-2000:]
    assert content(tmp_path / "out") == before


def test_by_hand_into_a_folder_that_a_live_run_holds(tmp_path):
    path = notebook(tmp_path)
    write_json(tmp_path / "out" / "run.json", {"status": "running", "host": "elsewhere"})
    before = content(tmp_path / "out")
    with lock_folder(tmp_path / "out"):
        said = by_hand(path, tmp_path / "executed.ipynb", tmp_path / "out")
    assert said.returncode != 0 and "is working in this run folder" in said.stderr and content(tmp_path / "out") == before


def test_a_cell_run_twice_and_settings_changed_in_between(tmp_path):
    out = begin_run(tmp_path / "out", "train", {"init": "mean"})
    try:
        assert begin_run(tmp_path / "out", "train", {"init": "mean"}) == out
        with pytest.raises(GTIError, match="other settings or inputs"):
            begin_run(tmp_path / "out", "train", {"init": "gti"})
        record_facts(out, "train", {"init": "mean"}, base="tiny-llama")
        assert begin_run(tmp_path / "out", "train", {"init": "mean"}) == out  # all cells once more, in the same kernel
        record_facts(out, "train", {"init": "mean"}, base="tiny-llama")
    finally:
        release_folder(out)
    assert read_run(out).status == "finished" and read_run(out).record["base"] == "tiny-llama"


def test_an_interrupted_run_by_hand_is_set_aside_and_continued(tmp_path):
    out = begin_run(tmp_path / "out", "train", {"init": "mean"})
    write_json(out / "checkpoints" / "sft" / "stage.json", {})
    (out / "train.ipynb").touch()
    release_folder(out)  # as when the kernel ends
    assert read_run(out).status == "crashed"
    again = begin_run(tmp_path / "out", "train", {"init": "mean"})
    release_folder(again)
    assert (again / "checkpoints" / "sft" / "stage.json").exists() and not (again / "train.ipynb").exists()
    assert read_run(tmp_path / "out.crashed-1").status == "crashed" and (tmp_path / "out.crashed-1" / "train.ipynb").exists()


def test_facts_without_a_beginning_never_take_the_place_of_a_run(tmp_path):
    record_facts(tmp_path / "own", "job", {"steps": 1}, base="tiny-llama")
    record_facts(tmp_path / "own", "job", {"steps": 1}, base="tiny-gpt2")  # the notebook was run again
    assert read_run(tmp_path / "own").record["base"] == "tiny-gpt2"
    with pytest.raises(GTIError, match="holds another run that is finished"):
        record_facts(tmp_path / "own", "job", {"steps": 2})
    write_json(tmp_path / "gti" / "run.json", {"status": "finished", "key": "a1"})
    with pytest.raises(GTIError, match="holds another run that is finished"):
        record_facts(tmp_path / "gti", "job", {"steps": 1})
    assert json.loads((tmp_path / "gti" / "run.json").read_text()) == {"status": "finished", "key": "a1"}
