"A kernel that is killed is explained; the progress line never shows a stage that has ended."

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from gti_nb.core import GTIError
from gti_nb.runs.execute import run
from gti_nb.runs.folder import read_run
from gti_nb.runs.job import StatusLine
from gti_nb.runs.kernel import KernelWatch, file_bar, how_it_ended, read_progress

GTI = [sys.executable, "-c", "import sys; from gti_nb.cli import main; sys.exit(main())"]

WORK = """\
import os, signal, time
from gti_nb.core import progress
held = bytearray(300_000_000)
with progress(total=24, desc="grounding") as bar:
    bar.update(7)
    time.sleep(1)
    bar.refresh()
    os.kill(os.getpid(), signal.{sign})
    time.sleep(60)
"""


def notebook(folder, sign):
    cells = [
        new_code_cell("out_dir = ''\ngrounding_batch_size = 32", metadata={"tags": ["parameters"]}),
        new_code_cell("print('before')"),
        new_markdown_cell("## Train\n\nTakes long."),
        new_code_cell(WORK.format(sign=sign)),
        new_code_cell("print('after')"),
    ]
    path = folder / "job.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    return path


def explained(error):
    "The parts of the message: cell, heading, first line, progress, memory, cause, what to lower."
    assert 'code cell 4 of 5 ("Train", import os, signal, time)' in error  # the first cell is the one that sets the parameters
    assert "grounding 7/24 steps" in error
    held = float(error.split("it held ")[1].split(" GB")[0])
    assert 0.3 <= held < 3 and "GB of memory were available" in error
    assert "memory is the likely cause" in error and "grounding_batch_size (now 32)" in error


@pytest.mark.parametrize("how", ["execute", "gti run"])
def test_a_killed_kernel_is_explained_and_the_executed_copy_kept(tmp_path, how):
    path, out = notebook(tmp_path, "SIGKILL"), tmp_path / "out"
    if how == "execute":
        with pytest.raises(GTIError) as e:
            run(path, {"grounding_batch_size": 32}, out, quiet=True)
        said = str(e.value)
    else:
        done = subprocess.run([*GTI, "run", str(path), "--out-dir", str(out)], capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        said = done.stderr
    explained(said)
    record = read_run(out)
    assert record.status == "failed"
    explained(record.record["error"])
    cells = [c for c in nbformat.read(out / "job.ipynb", 4).cells if c.cell_type == "code"]
    shown = [o for c in cells for o in c.outputs]
    assert any(o.get("text") == "before\n" for o in shown) and not any(o.get("text") == "after\n" for o in shown)
    died = [o for o in cells[3].outputs if o.output_type == "error"]
    assert [o.ename for o in died] == ["KernelDied"]
    explained(died[0].evalue)


def test_a_fault_in_a_library_is_not_called_a_lack_of_memory(tmp_path):
    with pytest.raises(GTIError, match="was ended by SIGSEGV in code cell 4 of 5.*a library ended it"):
        run(notebook(tmp_path, "SIGSEGV"), out_dir=tmp_path / "out", quiet=True)


def test_what_to_lower_is_named_with_its_value():
    values = dict(sft_batch_size=8, evaluation_beams=20, seed=3, encoder="minilm")
    said = how_it_ended(KernelWatch(), "code cell 1 of 1 (x)", "", values)
    assert "lower sft_batch_size (now 8), evaluation_beams (now 20)" in said and "seed" not in said and "at:" not in said
    assert "smaller batches" in how_it_ended(KernelWatch(), "code cell 1 of 1 (x)", "", {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["open", "close", "update"]), max_size=30))
def test_the_file_shows_the_innermost_open_bar(tmp_path_factory, moves):
    path = tmp_path_factory.mktemp("bars") / "progress.json"
    bar_class = file_bar(path, every=0)
    stack, last = [], None
    for number, move in enumerate(moves):
        if move == "open":
            stack.append(bar_class(total=5, desc=f"work {number}", unit="texts"))
        elif stack and move == "close":
            last = stack.pop()
            last.close()
        elif stack:
            stack[-1].n += 1
            stack[-1].refresh()
        state = read_progress(path)
        if stack:
            assert (state["open"], state["desc"], state["n"], state["unit"]) == (True, stack[-1].desc, stack[-1].n, "texts")
        elif last is not None:
            assert not state["open"] and state["desc"] == last.desc
    for bar in reversed(stack):
        bar.close()


def test_between_two_bars_the_line_names_the_cell(tmp_path):
    path = tmp_path / ".progress.json"
    copy = nbformat.read(notebook(tmp_path, "SIGKILL"), 4)
    copy.cells[3].metadata["papermill"] = dict(start_time="2026-01-01T00:00:00")
    line = StatusLine("gti", path, notebook=tmp_path / "copy.ipynb")
    assert line.text().startswith("gti · starting · ")
    nbformat.write(copy, tmp_path / "copy.ipynb")
    cell = 'gti · code cell 3 of 4 ("Train", import os, signal, time) · run'
    assert line.text().startswith(cell)
    state = dict(desc="grounding", n=24, total=24, unit="steps", rate=2.0, postfix="loss=2.13", open=True)
    path.write_text(json.dumps(state))
    assert line.text().startswith("gti · grounding 24/24 steps · loss=2.13 · 0:00 left · run")
    path.write_text(json.dumps(state | dict(open=False)))
    assert line.text().startswith(cell)
    for damaged in ("", "[]", "{", '{"n": 1}', '{"desc": 1, "n": "x", "open": true}', "[" * 5000):
        path.write_text(damaged)
        assert line.text().startswith(cell)


def test_a_log_gets_a_line_for_every_stage_once(tmp_path, capsys):
    line = StatusLine("gti", tmp_path / "progress.json")
    for desc in ["sft", "evaluating", "sft", "evaluating", "saving"]:
        (tmp_path / "progress.json").write_text(json.dumps(dict(desc=desc, n=1, total=2, unit="steps", open=True)))
        line.shown = min(line.shown, time.monotonic() - 1)
        line.tick()
    assert [text.split()[2] for text in capsys.readouterr().err.splitlines()] == ["sft", "evaluating", "saving"]


def test_a_watch_outlives_its_process():
    process = subprocess.Popen([sys.executable, "-c", "x = bytearray(50_000_000); print(1, flush=True); input()"], stdin=-1, stdout=-1)
    process.stdout.readline()
    watch = KernelWatch()
    watch.look(process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    watch.look(process)
    watch.look(None)
    assert watch.held > 50_000_000 and "was killed" in how_it_ended(watch, "code cell 1 of 1 (x)", "", {})
