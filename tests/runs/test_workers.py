"Runs side by side: killed workers, interrupted parents, and a study that gives the same tables however it is run."

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import nbformat
import nbformat.v4 as v4
import pandas as pd
import pytest

from gti_nb.cli import main
from gti_nb.core import GTIError
from gti_nb.runs.folder import find_runs, read_run
from gti_nb.runs.workers import Job, run_parallel

GTI = [sys.executable, "-c", "import sys; from gti_nb.cli import main; sys.exit(main())"]
WAITS = """
import time
from pathlib import Path

out = Path(out_dir)
(out / "begun").touch()
while not Path(go).exists():
    time.sleep(0.05)
(out / "value.txt").write_text(str(number**2))
"""


def jobs(folder, n):
    "Runs that wait for a file `go`, then write the square of a number."
    parameters = v4.new_code_cell('number: int = 0  # any\ngo: str = ""  # file\nout_dir: str = ""  # results')
    parameters.metadata["tags"] = ["parameters"]
    path = folder / "square.ipynb"
    nbformat.write(v4.new_notebook(cells=[parameters, v4.new_code_cell(WAITS)]), path)
    values = [{"number": i, "go": f"{folder}/../{folder.name}-go"} for i in range(n)]
    return [Job(str(path), values[i], str(folder / f"run{i}"), f"[{i + 1}/{n}] square {i}") for i in range(n)]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def begun(folder, status="running"):
    return [r for r in find_runs(folder) if r.status == status and (r.folder / "begun").exists()]


def test_killed_workers_stop_nobody_else_and_resume(tmp_path, capfd):
    folder = tmp_path / "study"
    folder.mkdir()
    raised = []

    def work():
        try:
            run_parallel(jobs(folder, 4), 2)
        except GTIError as e:
            raised.append(str(e))

    thread = threading.Thread(target=work)
    thread.start()
    killed = wait_for(lambda: [] if len(begun(folder)) < 2 else begun(folder))
    for r in killed:
        os.kill(r.record["pid"], signal.SIGKILL)
    (tmp_path / "study-go").touch()
    thread.join(120)
    assert "2 of 4 runs failed, and the same command resumes them: [1/4] square 0: its process was ended by SIGKILL" in raised[0]
    said = capfd.readouterr().err
    assert "[3/4] square 2 · started (process " in said and "2 of 4 done, 2 failed\n" in said and "[4/4] square 3 · finished in" in said
    made = run_parallel(jobs(folder, 4), 4, quiet=True)
    assert [r.reused for r in made] == [False, False, True, True]
    assert [(r.folder / "value.txt").read_text() for r in made] == ["0", "1", "4", "9"]


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_workers_stop_with_the_process_that_asked(tmp_path, sign):
    asked = json.dumps([asdict(job) for job in jobs(tmp_path, 2)])
    code = f"from gti_nb.runs.workers import Job, run_parallel; run_parallel([Job(**job) for job in {asked.replace('false', 'False')}], 2)"
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    workers = [r.record["pid"] for r in wait_for(lambda: [] if len(begun(tmp_path)) < 2 else begun(tmp_path))]
    parent.send_signal(sign)
    assert parent.wait(60) != 0
    wait_for(lambda: len(begun(tmp_path, "interrupted")) == 2)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in workers))


def test_a_failed_run_is_named(tmp_path):
    wrong = jobs(tmp_path, 1)
    wrong[0].parameters["number"] = "one"
    with pytest.raises(GTIError, match=r"1 of 1 runs failed, .* \[1/1\] square 0: square: parameter number: got 'one'"):
        run_parallel(wrong, 3, quiet=True)


def gti(*arguments):
    command = [*GTI, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})


def test_a_study_side_by_side_and_by_submitit_gives_the_tables_of_one_after_the_other(root, tiny_outputs, tmp_path):
    "One of two workers is killed; submitit's local executor makes what is missing."
    study = tmp_path / "tiny.yaml"
    study.write_text((root / "studies/tiny.yaml").read_text().replace("report: true", "report: false"))
    here = tmp_path / "outputs" / "tiny"
    (tokens,) = (tiny_outputs / "tiny").glob("tokenize-*")
    shutil.copytree(tokens, here / tokens.name)
    first = gti("study", study, "--parallel", 2, "--out-dir", tmp_path / "outputs")

    def trained():
        return [r for r in find_runs(here) if r.record.get("arm") == "gti" and r.status == "running"]

    os.kill(wait_for(trained)[0].record["pid"], signal.SIGKILL)
    _, said = first.communicate(timeout=300)
    assert first.returncode == 1 and "1 of 2 runs failed" in said and "gti seed 0: its process was ended by SIGKILL" in said
    again = gti("study", study, "--slurm", "cluster=local", "timeout_min=10", "--out-dir", tmp_path / "outputs")
    table, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "mean seed 0 · reusing" in said and "gti seed 0 · started (job " in said and "2 of 2 done" in said
    for arm in ("mean", "gti"):
        (there,), (own,) = ((p for p in folder.glob(f"{arm}-seed0-*") if p.suffix == "") for folder in (tiny_outputs / "tiny", here))
        assert there.name == own.name and read_run(there).record["key"] == read_run(own).record["key"]
        pd.testing.assert_frame_equal(pd.read_parquet(there / "per_user.parquet"), pd.read_parquet(own / "per_user.parquet"))
        assert json.loads((there / "losses.json").read_text()) == json.loads((own / "losses.json").read_text())
    assert "recall@10" in table


def test_wrong_options_are_refused_first(root, tmp_path, capsys):
    for options, message in [
        (["--parallel", "0"], "parallel: got 0"),
        (["--slurm", "gpu"], "--slurm: got 'gpu', expected KEY=VALUE"),
        (["--slurm"], "slurm: there is no sbatch on this machine"),
    ]:
        assert main(["study", str(root / "studies/tiny.yaml"), *options, "--out-dir", str(tmp_path / "outputs")]) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "outputs").exists()
