"Study files: a valid study, or one error that names the file, whatever somebody writes."

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gti_nb.core import GTIError
from gti_nb.runs.study import Study, read_study, study

VALID = """
name: tiny
tokenize: {data: toy, levels: 2, codes: 8}
common: {base: tiny-llama, sft_steps: 6, sft_learning_rate: 0.001, precision: fp32, device: cpu}
arms:
  mean: &mean {init: mean}
  gti: {<<: *mean, grounding_steps: 4, sft: {warmup_steps: 2}}
seeds: [0, 1]
baseline: mean
report: true
"""
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
PIECES = [b"[", b"{", b"*mean", b"&x ", b": ", b"-", b"0", b"\n"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    "The path of a study file."
    path = tmp_path_factory.mktemp("studies") / "s.yaml"
    return path


@pytest.mark.parametrize(
    "text, reason",
    [
        (BOMB, "too many values"),
        ("arms: &a {mean: *a}", "not complete before it"),
        ("arms: &a {mean: {<<: *a}}", "not complete before it"),
        ("arms: {mean: {sft_steps: " + "9" * 5000 + "}}", "5000 digits"),
        ("arms: {mean: [init, mean]}", "arm mean: got"),
        ("arms: {mean: []}", "arm mean: got"),
        ("arms: {mean: 0}", "arm mean: got"),
        ("arms: [mean]", "arms: got"),
        ("arms:\n  mean: {}\n  gti: {}\n  mean: {init: mean}", "line 4 holds 'mean' twice"),
        ("arms: {mean: {init: mean, init: normal}}", "'init' twice"),
        ("arms: {mean: {}}\narms: {gti: {}}", "'arms' twice"),
        ("arms: {mean: {}}\nseeds: [-1]", "seeds: got -1"),
        ("arms: {mean: {}}\nseeds: [0, 0]", "each seed once"),
        ("arms: {mean: {}}\nseeds: [true]", "seeds: got"),
        ("arms: {mean: {}}\nseeds: [010]", "'010'"),
        ("arms: {mean: {sft_steps: 1:30}}", "'1:30'"),
        ("arms: {mean: {sft_steps: 0x10}}", "'0x10'"),
        ("arms: {mean: {sft_learning_rate: .nan}}", "'.nan'"),
        ("arms: {mean: {sft: {weight_decay: '1e-3'}}}", "weight_decay: got '1e-3'"),
        ("arms: {mean: {sft: {lr_scheduler_type: cosin}}}", "did you mean 'cosine'"),
        ("arms: {mean: {sft: {weight_decay: -1}}}", "weight_decay: got -1"),
        ("arms: {mean: {init: !!python/name:os.system ''}}", "the tag"),
        ("name: ../up\narms: {mean: {}}", "folder"),
        ("name: " + "n" * 300 + "\narms: {mean: {}}", "up to 100 letters"),
        ('arms: {mean: {base: "a\\0b"}}', "code 0"),
        ('arms: {mean: {base: "\\ud83d"}}', "half a character"),
    ],
)
def test_refused(file, text, reason):
    file.write_text(text)
    with pytest.raises(GTIError, match="s.yaml") as refused:
        read_study(file)
    assert reason in str(refused.value), refused.value
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 2500


def test_numbers_are_those_of_json(file):
    file.write_text("arms: {mean: {sft_learning_rate: 1e-3, sft_steps: 10, sft: {weight_decay: 1E-2}}}")
    assert read_study(file).arms["mean"] == {"sft_learning_rate": 1e-3, "sft_steps": 10, "sft": {"weight_decay": 0.01}}


def test_seeds_from_the_command_line_are_checked_too(file):
    file.write_text(VALID)
    for seeds in ([-1], [0, 0], [2**32], ["0"], []):
        with pytest.raises(GTIError, match="seeds"):
            read_study(file, seeds=seeds)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["mean", "1e-3", "auto", "toy"])
anything = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3), max_leaves=6)
fields = st.sampled_from([*yaml.safe_load(VALID), "arm", "seed"])
NAMES = ["init", "base", "sft_steps", "sft_learning_rate", "sft", "grounding", "grounding_steps", "sft.lora_r", "evaluation"]
parameters = st.dictionaries(st.sampled_from(NAMES), anything, max_size=1)


@st.composite
def changed(draw):
    "The valid study with some fields, arms or settings replaced by anything."
    study = yaml.safe_load(VALID) | draw(st.dictionaries(fields, anything, max_size=1))
    if isinstance(study["arms"], dict):
        study["arms"] |= draw(st.dictionaries(st.sampled_from(["mean", "gti", "new"]), parameters, max_size=1))
    return yaml.safe_dump(study, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw):
    "The valid study with bytes cut, repeated or replaced."
    data = bytearray(VALID.encode())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=3) | st.sampled_from(PIECES))
    return bytes(data)


@settings(derandomize=True, deadline=None, max_examples=120, database=None)
@given(changed() | damaged() | st.binary(max_size=60))
@example(b"arms: {mean: {sft: {1: 2}}}")
@example(b"arms: {mean: {? [a] : 1}}")
@example(b"\xff\xfea\x00")
def test_any_file_is_a_study_or_named(file, data):
    file.write_bytes(data)
    try:
        assert isinstance(read_study(file), Study)
    except GTIError as e:
        assert "s.yaml" in str(e) and "Traceback" not in str(e)


@pytest.mark.parametrize(
    "base, said", [("no-such-folder", "no such file or folder"), (".", "no config.json in it"), ("''", "model: got ''")]
)
def test_a_base_of_a_later_arm_that_is_not_there_ends_a_study_before_its_first_run(tmp_path, monkeypatch, base, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(VALID.replace("init: mean}", "init: mean}\n  other: {base: " + base + "}", 1))
    with pytest.raises(GTIError, match=f"s.yaml: arm other: .*{said}"):
        study("s.yaml", quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]
