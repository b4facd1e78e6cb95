"The index of runs: whatever lies in one folder, the others are listed, and the terminal obeys nothing of it."

import json
import os
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gti_nb.core import GTIError
from gti_nb.runs.folder import find_runs, printable_table, read_run, runs

GTI = [sys.executable, "-c", "import sys; from gti_nb.cli import main; sys.exit(main())"]
GOOD = {"status": "finished", "pipeline": "train", "started": "2026-01-01", "parameters": {"init": "mean"}, "metrics": {"recall@10": 0.1}}
WRONG = {
    "cut": '{"status": ',
    "list": "[]",
    "empty": "",
    "mapping": "{}",
    "pid": json.dumps(GOOD | {"status": "running", "pid": -1}),
    "parameters": json.dumps(GOOD | {"parameters": None}),
    "metrics": json.dumps(GOOD | {"metrics": [1]}),
    "started": json.dumps(GOOD | {"started": 2026}),
    "deep": '{"status": "finished", "parameters": ' + "[" * 100_000,
    "digits": '{"status": "finished", "pid": ' + "9" * 5000 + "}",
    "twice": '{"status": "finished", "status": "failed"}',
    "nan": '{"status": "finished", "seconds": NaN}',
    "half": '{"status": "\\ud83d"}',
}


def gti(*arguments, **options):
    return subprocess.run([*GTI, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


def write(folder, text):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(text)


@pytest.fixture
def outputs(tmp_path):
    write(tmp_path / "good", json.dumps(GOOD))
    return tmp_path


def test_one_bad_record_is_named_and_hides_no_other(outputs):
    for name, text in WRONG.items():
        write(outputs / name, text)
    (outputs / "bytes").mkdir()
    (outputs / "bytes" / "run.json").write_bytes(b'{"status": "\xff"}')
    (outputs / "folder" / "run.json").mkdir(parents=True)
    (outputs / "pipe").mkdir()
    os.mkfifo(outputs / "pipe" / "run.json")
    (outputs / "link").mkdir()
    (outputs / "link" / "run.json").symlink_to(outputs / "nowhere.json")
    found = find_runs(outputs)
    assert found[0].name == "good" and found[0].status == "finished"
    bad = {r.name: r.record["error"] for r in found[1:]}
    assert set(bad) == {*WRONG, "bytes", "folder", "pipe", "link"} and {r.status for r in found[1:]} == {"unreadable"}
    assert all(os.path.join(name, "run.json") in error and "\n" not in error and len(error) < 600 for name, error in bad.items()), bad
    assert list(runs(outputs).status) == ["finished"] + ["unreadable"] * len(bad)
    for name in bad:
        with pytest.raises(GTIError, match="run.json"):
            read_run(outputs / name)
    said = gti("runs", outputs)
    assert said.returncode == 0 and "0.1" in said.stdout and said.stdout.count("unreadable") == len(bad)
    assert said.stderr.count("gti: unreadable: ") == said.stderr.count("\n") == len(bad)


record_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
FIELDS = ["status", "pid", "parameters", "started", "seconds", "metrics", "host", "process_started", "heartbeat", "study", "key"]
inner = st.dictionaries(st.text(max_size=3) | st.just("recall@10"), record_values, max_size=2)
changes = st.dictionaries(st.sampled_from(FIELDS), record_values | inner)


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(changes)
@example({"status": "running", "pid": 2**63, "host": os.uname().nodename, "process_started": 1e308})
@example({"metrics": {"recall@10": "\x1b[2J"}})
def test_any_record_is_listed_or_named(tmp_path_factory, change):
    root = tmp_path_factory.mktemp("outputs")
    write(root / "good", json.dumps(GOOD))
    write(root / "other", json.dumps(GOOD | change))
    table = runs(root)
    assert set(table.folder) == {str(root / "good"), str(root / "other")}
    assert printable_table(table).to_string(index=False).replace("\n", "").isprintable()


def test_a_folder_that_cannot_be_entered_is_named(outputs):
    write(outputs / "closed" / "run", json.dumps(GOOD))
    (outputs / "closed").chmod(0)
    try:
        if os.access(outputs / "closed", os.R_OK):
            pytest.skip("the superuser may enter every folder")
        found = find_runs(outputs)
        assert [r.status for r in found] == ["finished", "unreadable"] and "permission denied" in found[1].record["error"]
    finally:
        (outputs / "closed").chmod(0o755)


CONTROLS = "\x1b[2J\x07\x9b31m\u202eabc\u2066\x7f\r"


def test_what_a_terminal_would_obey_is_shown(outputs):
    record = GOOD | {
        "arm": CONTROLS,
        "error": CONTROLS,
        "parameters": {"init": CONTROLS, CONTROLS: 1, "seed": [CONTROLS]},
        "status": "failed",
    }
    write(outputs / f"a{CONTROLS}", json.dumps(record))
    write(outputs / "bad", json.dumps({CONTROLS: 1, "status": 3}))
    for arguments in (["runs", outputs], ["show", outputs / f"a{CONTROLS}"], ["show", outputs / CONTROLS], ["run", CONTROLS], [CONTROLS]):
        said = gti(*arguments)
        assert (said.stdout + said.stderr).replace("\n", "").isprintable(), said
        assert "x1b[2J" in said.stdout + said.stderr and "u202e" in said.stdout + said.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "train", "-p", "init", b"m\xff"], "not UTF-8"),
        (["runs", b"\xff"], "not UTF-8"),
        (["show", "x" * 300], "too long for the file system"),
        (["runs", "x" * 300], "no such folder"),
        (["study", "x" * 300], "no such file"),
        (["run", "x" * 300 + ".ipynb"], "no such notebook"),
        (["run", "train", "-p", "sft.lora_r", "[" * 10_000], "64 levels"),
        (["run", "train", "-p", "sft", "[" * 10_000], "64 levels"),
        (["run", "train", "-p", "tokens_dir", "x" * 300], "is no folder"),
        (["run", "train", "-p", "init", "x" * 300], "initializer: got"),
        (["run", "train", "-p", "sft_steps", "010"], "'010'"),
        (["run", "train", "-p", "sft_steps", "9" * 5000], "5000 digits"),
        (["run", "train", "-p", "sft_learning_rate", "nan"], "got 'nan'"),
        (["run", "train", "-p", "sft", "{lora_r: 1, lora_r: 2}"], "twice"),
        (["study", "none.yaml", "--seeds", "9" * 5000], "5000 digits"),
    ],
)
def test_hostile_arguments_are_one_line(tmp_path, arguments, message):
    done = gti_bytes(arguments, tmp_path)
    assert done.returncode == 1 and message in done.stderr and done.stderr.startswith("gti: "), done
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 2500 and list(tmp_path.iterdir()) == []


def gti_bytes(arguments, cwd):
    return subprocess.run([*GTI, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60)
