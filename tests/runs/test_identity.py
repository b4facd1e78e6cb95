"""A run is its settings and every byte that they point to: what changed is named and computed again, what is damaged is made again,
and nothing is lost. The real pipelines are in tests/test_pipelines.py."""

import json
import os
import shutil
from pathlib import Path

import nbformat
import nbformat.v4 as v4
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gti_nb.assets import load_base
from gti_nb.core import write_json
from gti_nb.core.locks import release_folder
from gti_nb.identity import damaged_results, inputs_of, run_key
from gti_nb.runs.execute import run
from gti_nb.runs.folder import begin_run, read_run, record_facts
from gti_nb.runs.parameters import pipeline_parameters, pipeline_path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "The hashes go to a cache of this test's own."
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "cache"))


def reader(folder: Path) -> Path:
    "A pipeline that copies what its parameters point to into its results."
    parameters = v4.new_code_cell('data: str = ""  # a folder\nmore: list = []  # files\nsteps: int = 1  # how many\nout_dir: str = ""')
    parameters.metadata["tags"] = ["parameters"]
    work = """from pathlib import Path
files = sorted(p for p in Path(data).rglob("*") if p.is_file()) if data else []
(Path(out_dir) / "said.txt").write_text("".join(p.read_text() for p in files) + "".join(Path(m).read_text() for m in more))
(Path(out_dir) / "tables").mkdir(exist_ok=True)
(Path(out_dir) / "tables" / "metrics.csv").write_text("recall,0.5")"""
    path = folder / "job.ipynb"
    nbformat.write(v4.new_notebook(cells=[parameters, v4.new_code_cell(work)]), path)
    return path


def films(folder: Path, title: str = "The Lion King") -> Path:
    (folder / "films" / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "films" / "items.csv").write_text(f"i1,{title}\n")
    (folder / "films" / "raw" / "events.csv").write_text("u1,i1\n")
    return folder / "films"


def kept_time(path: Path, text: str) -> None:
    "Write a file of the same size and set its time back."
    times = path.stat()
    assert len(text) == times.st_size
    path.write_text(text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("out_dir", ["out", None])
def test_a_changed_input_is_named_and_computed_again(tmp_path, monkeypatch, capsys, out_dir):
    monkeypatch.chdir(tmp_path)
    path, data = reader(tmp_path), films(tmp_path)
    options = dict(parameters={"data": "films"}, out_dir=out_dir)
    first = run(path, **options)
    assert run(path, **options).reused
    os.utime(data / "items.csv", (0, 0))
    (data / "items.csv").rename(data / "other")
    (data / "other").rename(data / "items.csv")
    assert run(path, **options).reused, "touched and renamed back, the content is the same"
    capsys.readouterr()
    kept_time(data / "items.csv", "i1,The Lion Kino\n")
    again = run(path, **options)
    said = capsys.readouterr().err
    assert not again.reused and "data: items.csv has changed" in said
    assert (again.folder / "said.txt").read_text() == "i1,The Lion Kino\nu1,i1\n"
    kept = tmp_path / "out.changed-1" if out_dir else first.folder
    assert (kept / "said.txt").read_text() == "i1,The Lion King\nu1,i1\n", "the earlier result is kept"
    assert run(path, **options).reused
    (data / "brands.csv").write_text("")
    (data / "raw" / "events.csv").unlink()
    third = run(path, **options)
    assert not third.reused and "data: brands.csv is new; data: raw/events.csv is gone" in capsys.readouterr().err


def test_a_single_file_in_a_list_is_named(tmp_path, capsys):
    path, file = reader(tmp_path), tmp_path / "index.json"
    file.write_text("{}")
    run(path, {"more": [str(file)]}, tmp_path / "out")
    file.write_text("[]")
    assert not run(path, {"more": [str(file)]}, tmp_path / "out").reused
    assert f"more[0]: {file} has changed" in capsys.readouterr().err


def test_the_same_content_elsewhere_is_the_same_run(tmp_path):
    path = reader(tmp_path)
    run(path, {"data": str(films(tmp_path / "a"))}, tmp_path / "out", quiet=True)
    assert run(path, {"data": str(films(tmp_path / "b"))}, tmp_path / "out", quiet=True).reused


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda f: (f / "said.txt").write_text("i1"), "said.txt has other bytes"),
        (lambda f: flip(f / "tables" / "metrics.csv"), "tables/metrics.csv has other bytes"),
        (lambda f: (f / "tables" / "metrics.csv").unlink(), "tables/metrics.csv is missing"),
        (lambda f: flip(f / "parameters.json"), "parameters.json has other bytes"),
        (lambda f: (f / "files.json").unlink(), "files.json: no such file"),
        (lambda f: (f / "job.ipynb").write_text("{"), "job.ipynb cannot be read"),
        (lambda f: write_json(f / "run.json", json.loads((f / "run.json").read_text()) | {"seconds": 0}), "run.json: its content is not"),
    ],
)
def test_a_damaged_run_is_named_and_made_again(tmp_path, capsys, damage, says):
    path = reader(tmp_path)
    first = run(path, out_dir=tmp_path / "out", quiet=True)
    damage(first.folder)
    again = run(path, out_dir=tmp_path / "out")
    said = capsys.readouterr().err
    assert not again.reused and says in said and "the damaged run is now out.damaged-1" in said
    assert (tmp_path / "out.damaged-1").is_dir() and damaged_results(again.folder, again.record) == []
    assert run(path, out_dir=tmp_path / "out", quiet=True).reused


def test_what_a_user_does_in_a_run_folder_is_no_damage(tmp_path):
    done = run(reader(tmp_path), out_dir=tmp_path / "out", html=True, quiet=True)
    executed = nbformat.read(done.folder / "job.ipynb", 4)
    executed.cells.append(v4.new_markdown_cell("my note"))
    nbformat.write(executed, done.folder / "job.ipynb")
    (done.folder / "job.html").write_text("exported again")
    (done.folder / "notes.txt").write_text("mine")
    (done.folder / ".ipynb_checkpoints").mkdir()
    assert run(tmp_path / "job.ipynb", out_dir=tmp_path / "out", quiet=True).reused


def test_an_input_that_changes_while_the_run_works_makes_it_unusable_for_others(tmp_path, capsys):
    path, data = reader(tmp_path), films(tmp_path)
    notebook = nbformat.read(path, 4)
    notebook.cells.append(v4.new_code_cell("if steps == 2: (Path(data) / 'items.csv').write_text('another')"))
    nbformat.write(notebook, path)
    run(path, {"data": str(data), "steps": 2}, tmp_path / "out")
    said = capsys.readouterr().err
    assert "will not be reused, because its input changed while it ran: data: items.csv has changed" in said
    assert read_run(tmp_path / "out").record["key"] is None


def test_a_link_to_nowhere_in_a_run_is_no_reason_to_lose_it(tmp_path):
    path = reader(tmp_path)
    notebook = nbformat.read(path, 4)
    notebook.cells.append(v4.new_code_cell("(Path(out_dir) / 'latest').symlink_to('nowhere'); (Path(out_dir) / 'up').symlink_to('.')"))
    nbformat.write(notebook, path)
    assert run(path, out_dir=tmp_path / "out", quiet=True).status == "finished"
    assert run(path, out_dir=tmp_path / "out", quiet=True).reused


# Inputs of every kind


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_base_and_an_encoder_count_by_their_bytes(place):
    model, tokenizer = load_base("tiny-llama")
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    shutil.copytree(place / "base", place / "copy")
    seen = set()
    for pipeline, name in (("train", "base"), ("tokenize", "encoder"), ("quantizers", "encoder")):
        key = run_key(pipeline, {name: "base"})
        assert run_key(pipeline, {name: "copy"}) == run_key(pipeline, {name: str(place / "base")}) == key
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            content = (place / "copy" / file).read_bytes()
            flip(place / "copy" / file)
            assert run_key(pipeline, {name: "copy"}) != key
            (place / "copy" / file).write_bytes(content)
        seen.add(key)
    assert len(seen) == 3
    (place / "model.gguf").write_bytes(b"GGUF1")
    key = run_key("train", {"base": "model.gguf"})
    (place / "model.gguf").write_bytes(b"GGUF2")
    assert run_key("train", {"base": "model.gguf"}) != key


def test_a_hub_model_counts_by_its_snapshot(place, monkeypatch):
    import huggingface_hub

    (place / "snapshot").mkdir()
    (place / "snapshot" / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **options: str(place / "snapshot"))
    key = run_key("train", {"base": "some-org/some-model"})
    (place / "snapshot" / "config.json").write_text("[]")
    assert run_key("train", {"base": "some-org/some-model"}) != key


def test_embedded_and_tiny_names_need_no_fetching(place, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("something was fetched"))
    for parameters in ({"data": "movielens-100k", "encoder": "all-minilm-l6-v2"}, {"data": "toy"}):
        assert run_key("tokenize", parameters) == run_key("tokenize", parameters)
    assert run_key("train", {"base": "tiny-llama"}) != run_key("train", {"base": "smollm2-135m"})


def test_files_in_options_count(place):
    (place / "index.json").write_text("{}")
    keys = []
    for content in ("{}", "[]"):
        (place / "index.json").write_text(content)
        keys.append(run_key("tokenize", {"quantizer_options": {"index": "index.json", "preset": "paper"}}))
        keys.append(run_key("quantizers", {"choices": ["rqkmeans", {"quantizer": "imported", "index": "index.json"}]}))
    assert len(set(keys)) == 4


def test_a_mirror_of_amazon_counts_by_its_files(place, monkeypatch):
    meta, events = place / "raw/meta_categories/meta_Books.jsonl", place / "benchmark/5core/rating_only/Books.csv"
    for file in (meta, events):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    key = run_key("tokenize", {"data": "amazon-2023/Books"})
    monkeypatch.setenv("GTI_AMAZON_2023", str(place))
    mirrored = run_key("tokenize", {"data": "amazon-2023/Books"})
    events.write_text("2")
    assert len({key, mirrored, run_key("tokenize", {"data": "amazon-2023/Books"})}) == 3


def test_another_run_counts_by_its_key_until_its_files_change(place):
    path = reader(place)
    tokens = run(path, {"steps": 1}, place / "tokens", quiet=True)
    key = run_key("train", {"tokens_dir": "tokens"})
    shutil.copytree(place / "tokens", place / "moved")
    assert run_key("train", {"tokens_dir": "moved"}) == key
    run(path, {"steps": 1}, place / "made-again", quiet=True)
    assert run_key("train", {"tokens_dir": "made-again"}) == key, "the same run, made at another time"
    (tokens.folder / "said.txt").write_text("changed")
    changed = inputs_of("train", {"tokens_dir": "tokens"})["tokens_dir"]
    assert run_key("train", {"tokens_dir": "tokens"}) != key and "said.txt" in changed.files


def test_a_study_counts_by_its_finished_runs(place):
    path = reader(place)
    run(path, {"steps": 1}, place / "study" / "arm-1", quiet=True)
    key = run_key("report", {"study_dir": "study", "runs": []})
    write_json(place / "study" / "report-1" / "run.json", {"pipeline": "report", "status": "finished", "key": "1"})
    write_json(place / "study" / "arm-2" / "run.json", {"pipeline": "train", "status": "failed", "key": "2"})
    assert run_key("report", {"study_dir": "study", "runs": []}) == key
    run(path, {"steps": 2}, place / "study" / "arm-3", quiet=True)
    assert run_key("report", {"study_dir": "study", "runs": []}) != key


def test_runs_inside_a_data_folder_are_no_data(place):
    films(place)
    key = run_key("tokenize", {"data": "films"})
    write_json(place / "films" / "outputs" / "runs" / "a" / "run.json", {"status": "finished", "pipeline": "train", "key": "1"})
    (place / "films" / "outputs" / "runs" / ".a.lock").write_text("1")
    assert run_key("tokenize", {"data": "films"}) == key
    films(place, "Another")
    assert run_key("tokenize", {"data": "films"}) != key


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.recursive(st.text(max_size=300) | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=5))
def test_no_text_makes_the_key_fail(value):
    assert run_key("of my own", {"a": value, "b": 1}) != run_key("of my own", {"a": value, "b": 2})


def test_every_parameter_that_names_a_file_is_looked_into(place):
    (place / "x").mkdir()
    (place / "x" / "config.json").write_text("{}")
    for name in ("tokenize", "quantizers", "train", "report"):
        for parameter in pipeline_parameters(pipeline_path(name)).values():
            points = any(word in parameter.help for word in ("folder", "FILE", "the file of")) and parameter.name not in (
                "out_dir",
                "save_model",
            )
            points = points and not parameter.help.startswith("names of")
            looked = inputs_of(name, {parameter.name: ["x"] if parameter.hint == "list" else "x"})
            assert bool(looked) == points or (looked and parameter.name == "choices"), (name, parameter.name)


def test_a_run_by_hand_is_keyed_and_listed_like_any_other(place, monkeypatch):
    data, parameters = films(place), {"data": "films", "seed": 0}
    key = run_key("tokenize", parameters)
    for name, changed in (("out", False), ("other", True)):
        folder = begin_run(place / name, "tokenize", parameters)
        (folder / "result.txt").write_text("1")
        if changed:
            (data / "items.csv").write_text("i1,Another\n")
            with pytest.warns(UserWarning, match="its input changed while it ran .data: items.csv has changed"):
                record_facts(folder, "tokenize", parameters)
        else:
            record_facts(folder, "tokenize", parameters)
        release_folder(folder)
        done = read_run(folder)
        assert done.status == "finished" and done.record["key"] == (None if changed else key)
        assert damaged_results(folder, done.record) == []
        flip(folder / "inputs.json")
        assert damaged_results(folder, done.record) == ["inputs.json has other bytes than were written"]
