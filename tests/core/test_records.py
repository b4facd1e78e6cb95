"core.records: whatever a file holds, a value within the limits comes back, or one error that names the file."

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gti_nb.core import RecordError, check_record, parse_json, parse_yaml, read_json, read_yaml, write_json

fuzz = settings(derandomize=True, deadline=None, max_examples=150, database=None)
names = st.text(max_size=6)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=20)
RUN = json.dumps({"status": "finished", "pid": 7, "parameters": {"steps": 10, "rate": 1e-3, "data": "toy"}, "started": None}).encode()
ARMS = b"name: a\narms:\n  mean: &m {init: mean, sft_steps: 6}\n  gti: {<<: *m, grounding_steps: 4}\nseeds: [0, 1]\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
PIECES = [b"[", b"{", b"*m", b"&m ", b"<<: ", b"0", b"-", b"1:30", b'"', b"\n", b"!!", b"NaN"]


def depth(value):
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


def is_named_or_valid(read, path):
    "Read a file: a value that JSON can hold and UTF-8 can write, or an error of one line that names the file."
    try:
        value = read(path)
    except RecordError as e:
        assert path.name in str(e) and "\n" not in str(e), e
        assert len(str(e)) < 700 + len(str(path)), e
        return
    assert depth(value) <= 64
    assert json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) == value


@st.composite
def damaged(draw, valid):
    "A valid file with some bytes cut, repeated or replaced."
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 9))
        data[at : at + length] = draw(st.binary(max_size=4) | st.sampled_from(PIECES))
    return bytes(data)


@fuzz
@given(st.binary(max_size=200) | damaged(RUN) | st.text(alphabet='{}[]",:0e+-.\\uda\n', max_size=60).map(str.encode))
@example(b"[" * 100_000)
@example(b"1" * 5000)
@example(b'{"a": 1, "a": 2}')
def test_any_bytes_read_as_json(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "run.json"
    path.write_bytes(data)
    is_named_or_valid(read_json, path)


@fuzz
@given(st.binary(max_size=200) | damaged(ARMS) | st.text(alphabet="{}[]&*!|>'\"%@`#,:?-<~01e_. \n\tab\\xuU", max_size=80).map(str.encode))
@example(BOMB.encode())
@example(b"a: &a [*a]")
@example(b"a: &a {<<: *a}")
@example(b"- " * 30_000)
@example(b"%YAML " + b"9" * 5000 + b".1\n---\na")
@example(b'"\\UFFFFFFFF"')
def test_any_bytes_read_as_yaml(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "study.yaml"
    path.write_bytes(data)
    is_named_or_valid(read_yaml, path)


@fuzz
@given(values)
def test_what_is_written_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@fuzz
@given(values)
def test_yaml_reads_json_as_json_does(value):
    text = json.dumps(value)
    unreadable = re.search(r"\\u(d[89a-f]|00[01])", text)  # the library refuses half characters, and pairs of them, in escapes
    if len(text) > 1000 or unreadable:
        return
    assert parse_yaml(text, "f") == parse_json(text, "f")


@fuzz
@given(st.from_regex(r"[-+]?[0-9_.:eExo]{1,12}", fullmatch=True))
def test_a_number_in_yaml_is_a_number_in_json_or_text_or_refused(text):
    try:
        number = parse_json(text, "f")
    except RecordError:
        number = None
    try:
        found = parse_yaml(f"[{text}]", "f")
    except RecordError:
        assert number is None
        return
    assert found == [text if number is None else number] or ":" in text  # a mapping such as {1: null}


NO_NUMBERS = ["010", "1:30", "0x1F", "1_000", "+5", ".5", "5.", ".inf", ".nan", "-.Inf", "1e999", "9" * 5000, "18446744073709551616"]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_numbers_that_json_does_not_know_are_refused(text):
    with pytest.raises(RecordError, match=r"study.yaml: line 1 holds"):
        parse_yaml(f"seed: {text}", "study.yaml")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("mean: {}\ngti: {}\nmean: {}", "line 3 holds 'mean' twice"),
        (BOMB, "too many values"),
        ("a: &a [*a]", "not complete before it"),
        ("a: *b", "not complete before it"),
        ("a: !!python/object/apply:os.system [ls]", "the tag"),
        ("a: 1\n---\na: 2", "a second document"),
        ("? [a, b]\n: 1", "no plain text"),
        ("a: {<<: 3}", "takes mappings only"),
        ("a: [1", "not valid YAML at line"),
        ('a: "\\ud83d"', "half a character"),
        ("a: " + "[" * 5000, "64 levels"),
        ("a: b\0c", "not valid YAML"),
        ("a" * 70_000, "allowed: up to"),
    ],
)
def test_what_yaml_allows_and_we_do_not(text, reason):
    with pytest.raises(RecordError, match=reason) as refused:
        parse_yaml(text, "study.yaml")
    assert str(refused.value).startswith("study.yaml: ")


def test_aliases_and_merged_mappings_are_copies():
    text = "base: &b {steps: 6, rate: 1e-3}\none: {<<: *b, steps: 7}\ntwo: *b\nmany: {<<: [*b, {rate: 2, seed: 3}]}"
    found = parse_yaml(text, "f")
    assert found == yaml.safe_load(text.replace("1e-3", "1.0e-3"))
    assert list(found["one"]) == ["steps", "rate"] and found["two"] is not found["base"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p), lambda p: os.symlink(p, p)])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, make):
    make(tmp_path / "run.json")
    with pytest.raises(RecordError, match="run.json"):
        read_json(tmp_path / "run.json")


def test_a_file_over_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "huge.json", "wb") as f:
        f.truncate(10**12)  # sparse: takes no room
    with pytest.raises(RecordError, match="larger than"):
        read_json(tmp_path / "huge.json")


def test_a_record_has_the_fields_it_should(tmp_path):
    shape = {"status": str, "pid": int | None, "metrics": dict[str, float]}
    good = {"status": "finished", "pid": None, "metrics": {"recall@10": 1}}
    assert check_record(good, shape, "run.json") is good
    assert check_record(good | {"new": 1}, shape, "run.json", unknown="ignore")["new"] == 1
    for wrong, reason in [
        ([], "expected a mapping with status"),
        ({"status": "finished"}, "has no field 'pid'"),
        (good | {"pid": True}, "pid: got True"),
        (good | {"metrics": {"recall@10": "1"}}, "metrics: got"),
        (good | {"statsu": 1}, "did you mean 'status'"),
    ]:
        with pytest.raises(RecordError, match=reason):
            check_record(wrong, shape, "run.json")


def test_the_error_is_safe_to_print(tmp_path):
    (tmp_path / "run.json").write_text('{"\\u001b[2J\\u0007": 1, "\\u202e": 2}')
    code = "import sys; from gti_nb.core import read_json; read_json(sys.argv[1], fields={'a': int}, unknown='refuse', required=[])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run.json"], capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and said.isprintable() and "x1b[2J" in said
