"Runs as processes: what is left behind after success, failure, interruption and a kill."

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest

from gti_nb.core import GTIError
from gti_nb.runs.execute import export_html, run
from gti_nb.runs.folder import lock_folder, read_run, runs

GTI = [sys.executable, "-c", "import sys; from gti_nb.cli import main; sys.exit(main())"]


def notebook(folder, *cells, name="job"):
    "A pipeline with the parameters `steps` and `out_dir`."
    parameters = v4.new_code_cell('steps: int = 3  # how many\nout_dir: str = ""  # results')
    parameters.metadata["tags"] = ["parameters"]
    path = Path(folder) / f"{name}.ipynb"
    nbformat.write(v4.new_notebook(cells=[parameters, *map(v4.new_code_cell, cells)]), path)
    return path


def outputs(path):
    "All outputs of an executed notebook."
    return [o for c in nbformat.read(path, 4).cells if c.cell_type == "code" for o in c.outputs]


def wait_for(condition, seconds=60):
    "Wait until a condition holds."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def sleeper(folder):
    "A notebook that says when it has begun, and then sleeps for a long time."
    return notebook(folder, "from pathlib import Path; (Path(out_dir)/'begun').touch()\nimport time\nfor _ in range(6000): time.sleep(.1)")


def started(folder, pipeline, **options):
    "`gti run` in a process of its own, past the notebook's first cells."

    def listen():
        "A background job of a script is started deaf to Ctrl-C, and its children with it."
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [*GTI, "run", str(pipeline), "--out-dir", str(folder)], stderr=subprocess.PIPE, text=True, preexec_fn=listen, **options
    )
    wait_for((folder / "begun").exists)
    return process


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"step": 1}, "did you mean 'steps'"),
        ({"steps": "1"}, "got '1' (str), allowed: int"),
        ({"steps": 1.5}, "allowed: int"),
        ({"steps": None}, "allowed: int"),
    ],
)
def test_refused_before_the_start(tmp_path, parameters, message):
    with pytest.raises(GTIError) as e:
        run(notebook(tmp_path, "1/0"), parameters, tmp_path / "out", quiet=True)
    assert message in str(e.value)
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_complete_and_reused(tmp_path):
    path = notebook(tmp_path, "import sys, os; print(steps, sys.executable); print(os.getcwd())")
    first = run(path, {"steps": 5}, tmp_path / "out", quiet=True)
    assert first.status == "finished" and not first.reused
    said = outputs(first.folder / "job.ipynb")[-1].text.split("\n")
    assert said[0] == f"5 {sys.executable}" and said[1] == os.getcwd()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["parameters"] == {"steps": 5, "out_dir": str(tmp_path / "out")} and record["seconds"] > 0 and record["versions"]["torch"]
    assert json.loads((tmp_path / "out" / "parameters.json").read_text()) == record["parameters"]
    before = {p: p.read_bytes() for p in first.folder.iterdir()}
    assert run(path, {"steps": 5}, tmp_path / "out", quiet=True).reused
    again = run(path, {"steps": 5}, tmp_path / "out", fresh=True, quiet=True)
    assert again.folder.name == "out-2" and not again.reused
    assert {p: p.read_bytes() for p in first.folder.iterdir()} == before
    with pytest.raises(GTIError, match="steps: 5 there, 6 here"):
        run(path, {"steps": 6}, tmp_path / "out", quiet=True)
    assert {p: p.read_bytes() for p in first.folder.iterdir()} == before
    assert list(runs(tmp_path).status) == ["finished", "finished"]


def test_a_changed_notebook_of_ones_own_is_another_run(tmp_path):
    first = run(notebook(tmp_path, "print(1)"), out_dir=tmp_path / "out", quiet=True)
    with pytest.raises(GTIError, match="another version or input"):
        run(notebook(tmp_path, "print(2)"), out_dir=first.folder, quiet=True)


@pytest.mark.parametrize(
    "cell, error",
    [
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import sys; sys.exit()", "SystemExit"),
        ("import os; os._exit(0)", "the kernel ended with exit status 0 in code cell"),
    ],
)
def test_a_failing_notebook_is_a_failed_run(tmp_path, cell, error):
    path = notebook(tmp_path, "print('before')", cell, "print('after')")
    done = subprocess.run([*GTI, "run", str(path), "--out-dir", str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 1 and error in done.stderr and "Traceback" not in done.stderr
    failed = read_run(tmp_path / "out")
    assert failed.status == "failed" and error in failed.record["error"]
    texts = [o.get("text", o.get("ename", "")) for o in outputs(tmp_path / "out" / "job.ipynb")]
    assert "before\n" in texts and "after\n" not in texts
    assert ("KernelDied" if "kernel" in error else error.split(":")[0]) in texts


def test_a_failed_run_is_kept_aside(tmp_path):
    for _ in range(2):
        with pytest.raises(GTIError, match="ZeroDivisionError"):
            run(notebook(tmp_path, "1/0"), out_dir=tmp_path / "out", quiet=True)
    assert run(notebook(tmp_path, "print(1)"), out_dir=tmp_path / "out", quiet=True).status == "finished"
    assert [read_run(tmp_path / f"out.failed-{n}").status for n in (1, 2)] == ["failed", "failed"]


def test_checkpoints_move_to_the_next_attempt_at_the_same_run(tmp_path):
    path = notebook(
        tmp_path,
        "from pathlib import Path; kept = Path(out_dir)/'checkpoints'; kept.mkdir(exist_ok=True)\n"
        "(kept/str(len(list(kept.iterdir())))).touch()",
        "assert (kept/'1').exists()",
    )
    with pytest.raises(GTIError, match="AssertionError"):
        run(path, out_dir=tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "checkpoints" / "0").exists()
    assert run(path, out_dir=tmp_path / "out", quiet=True).status == "finished"
    assert not (tmp_path / "out.failed-1" / "checkpoints").exists() and len(list((tmp_path / "out" / "checkpoints").iterdir())) == 2
    with pytest.raises(GTIError, match="AssertionError"):
        run(path, {"steps": 4}, tmp_path / "other", quiet=True)
    with pytest.raises(GTIError, match="AssertionError"):
        run(path, {"steps": 5}, tmp_path / "other", quiet=True)  # another run finds nothing of it
    assert (tmp_path / "other.failed-1" / "checkpoints" / "0").exists()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_can_be_repeated(tmp_path, sign):
    path, folder = sleeper(tmp_path), tmp_path / "out"
    process = started(folder, path)
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert read_run(folder).status == "interrupted"
    assert "KeyboardInterrupt" in [o.get("ename") for o in outputs(folder / "job.ipynb")]
    assert run(notebook(tmp_path, "print(1)"), out_dir=folder, quiet=True).status == "finished"
    assert read_run(tmp_path / "out.interrupted-1").status == "interrupted"


def test_a_killed_run_shows_as_crashed(tmp_path):
    path, folder = sleeper(tmp_path), tmp_path / "out"
    process = started(folder, path)
    assert read_run(folder).status == "running"
    with pytest.raises(GTIError, match=f"pid {process.pid}"):
        run(path, out_dir=folder, quiet=True)  # two in one folder
    process.kill()
    process.communicate()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"  # nobody was left to say otherwise
    assert read_run(folder).status == "crashed" and list(runs(tmp_path).status) == ["crashed"]
    assert run(notebook(tmp_path, "print(1)", name="job"), out_dir=folder, quiet=True).status == "finished"
    assert read_run(tmp_path / "out.crashed-1").status == "crashed"


def test_progress_goes_to_the_terminal_and_not_into_the_notebook(tmp_path):
    path = notebook(
        tmp_path,
        "from gti_nb.core import progress\nimport time\nbar = progress(total=4, desc='grounding')\n"
        "for i in range(4): bar.set_postfix(loss='2.5'); bar.update(1); time.sleep(.8)\nbar.close()",
    )
    terminal, end = pty.openpty()
    process = subprocess.Popen([*GTI, "run", str(path), "--out-dir", str(tmp_path / "out")], stderr=end)
    os.close(end)
    said = b""
    try:
        while chunk := os.read(terminal, 4096):
            said += chunk
    except OSError:
        pass  # how a terminal says that nobody writes to it any more
    assert process.wait() == 0
    live = [line for line in said.decode().split("\r\033[K") if "grounding" in line]
    assert any("/4" in line and "loss=2.5" in line and "left" in line for line in live) and b"finished in" in said
    assert outputs(tmp_path / "out" / "job.ipynb") == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["files.json", "inputs.json", "job.ipynb", "parameters.json", "run.json"]


def test_folders_that_are_something_else_are_left_alone(tmp_path):
    path = notebook(tmp_path, "print(1)")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(GTIError, match="holds files but no run"):
        run(path, out_dir=tmp_path / "notes", quiet=True)
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["mine.txt"]
    with pytest.raises(GTIError):
        run(path, out_dir=tmp_path / "notes" / "mine.txt" / "deeper", quiet=True)
    assert run(path, out_dir=tmp_path / "with {braces} and spaces", quiet=True).status == "finished"


def test_a_notebook_without_parameters_is_refused(tmp_path):
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("print(1)")]), tmp_path / "plain.ipynb")
    with pytest.raises(GTIError, match="tagged 'parameters'"):
        run(tmp_path / "plain.ipynb", quiet=True)
    (tmp_path / "text.ipynb").write_text("not json")
    with pytest.raises(GTIError, match="not a notebook"):
        run(tmp_path / "text.ipynb", quiet=True)


def test_the_lock_ends_with_its_process(tmp_path):
    code = (
        "from gti_nb.runs.folder import lock_folder; import time\n"
        f"with lock_folder({str(tmp_path / 'run')!r}): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(GTIError, match=f"pid {holder.pid}"):
        lock_folder(tmp_path / "run").__enter__()
    holder.kill()
    holder.communicate()
    with lock_folder(tmp_path / "run"):
        pass


def test_pages_escape_what_items_are_called(tmp_path):
    path = notebook(tmp_path, "import pandas as pd\npd.DataFrame({'title': ['<script>alert(1)</script>']})")
    done = run(path, out_dir=tmp_path / "out", html=True, quiet=True)
    page = (done.folder / "job.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page
    assert export_html(done.folder / "job.ipynb", tmp_path / "page.html").read_text() == page
