"Every long stage has a bar in units of its own; short work leaves no trace; a lack of memory is explained."

import numpy as np
import pytest
import tqdm.auto
from tqdm.std import tqdm as plain_tqdm

from gti_nb.arm import train_arm
from gti_nb.core import GTIError, bars, counted, explain_memory, progress, runtime, with_bars
from gti_nb.settings import arm_config
from gti_nb.text import encode_text
from gti_nb.tokenize import tokenize


class Clock:
    "Every look at it finds three seconds gone."

    def __init__(self):
        self.now = 0.0

    def time(self):
        self.now += 3
        return self.now


@pytest.fixture
def drawn(monkeypatch):
    "All bars that are drawn when everything takes long: [description, units done, units in all, unit], in the order of drawing."
    found = []

    class Bar(plain_tqdm):
        def __init__(self, *args, **kw):
            super().__init__(*args, **kw)
            if not self.disable:
                found.append([self.desc.removesuffix(": "), 0, self.total, self.unit])
                self.line = found[-1]

        def display(self, *args, **kw):
            pass

        def close(self):
            super().close()
            if hasattr(self, "line"):
                self.line[1] = self.n

    monkeypatch.setattr(runtime, "time", Clock())
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return found


SMALL = dict(base="tiny-llama", init="focus", sft_steps=3, sft_batch_size=4, sft_eval_steps=2, grounding_steps=4, grounding_batch_size=4)


def test_every_stage_of_a_run_counts_its_own_units(drawn, tmp_path):
    tokens = tokenize("toy", tmp_path / "tokens", levels=2, codes=8)
    encode_text(tokens.dataset.texts(), cache=False)
    train_arm(tokens, arm_config(**SMALL, precision="fp32", evaluation_exact_users=4), tmp_path / "arm")
    units = {}
    for desc, _, _, unit in drawn:
        units.setdefault(desc.split(" (")[0], set()).add(unit)
    expected = {
        "encoding": "texts",
        "quantizing": "levels",
        "moving centres": "rounds",
        "grounding": "steps",
        "evaluating held-out": "pairs",
        "preparing examples": "steps",
        "sft": "steps",
        "counting tokens": "steps",
        "reading histories": "users",
        "writing prompts": "users",
        "decoding": "prompts",
        "scoring": "prompts",
        "reading": "prompts",
    }
    assert units["tokenizing"] == {"texts", "pairs"}
    assert {desc: units.get(desc) for desc in expected} == {desc: {unit} for desc, unit in expected.items()}
    whole = [line for line in drawn if line[0] != "moving centres"]  # which may end early
    assert all(n == total for _, n, total, _ in whole), whole
    assert len(set(tokens.dataset.texts())) in [total for desc, _, total, _ in drawn if desc == "encoding"]


def test_progress_false_reaches_everything(drawn, tmp_path):
    tokens = tokenize("toy", tmp_path / "tokens", levels=2, codes=8, progress=False)
    train_arm(tokens, arm_config(**SMALL | dict(init="mean"), precision="fp32"), progress=False)
    assert not drawn


def test_work_below_two_seconds_leaves_no_trace(capfd):
    for things in ([1, 2], np.arange(3), iter("ab"), range(4)):
        assert list(progress(things, enabled=None)) == list(things) or not hasattr(things, "__len__")
    with progress(total=3, enabled=None) as bar:
        bar.update(3)
    assert capfd.readouterr() == ("", "")


def test_the_time_left_counts_the_first_seconds(drawn, monkeypatch):
    class Slow:
        def time(self):
            return now[0]

    now = [100.0]
    monkeypatch.setattr(runtime, "time", Slow())
    bar = progress(total=10, enabled=None, unit="texts")
    now[0] = 110.0
    bar.update(5)
    assert bar.bar.start_t == 100.0 and bar.bar.n == 5
    bar.close()


def test_hidden_stays_hidden_inside_and_is_shown_again_after_an_error(drawn):
    @with_bars
    def inner(progress=True):
        list(counted(["ab"], 2, "inner", "texts"))

    with pytest.raises(ZeroDivisionError), bars(False):
        inner()
        raise ZeroDivisionError
    assert not drawn
    inner(progress=None)
    assert drawn == [["inner", 2, 2, "texts"]]


@pytest.mark.parametrize(
    "error, explained",
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_a_lack_of_memory_names_size_and_setting(error, explained):
    with pytest.raises(GTIError if explained else RuntimeError, match="8 texts, logits 3 MB.*lower batch_size" if explained else "shape"):
        with explain_memory(lambda: "8 texts, logits 3 MB", "lower batch_size (now 8)"):
            raise error
