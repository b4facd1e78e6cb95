"checks: text that can be written, repaired where people read it and refused where it has to stay exact."

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gti_nb.core import GTIError, check_fields, check_text, check_type, whole_text, write_json

FIXED = settings(derandomize=True, deadline=None, max_examples=200)
texts = st.lists(st.characters() | st.sampled_from(["\ud83d", "\ude00", "\ufffd"])).map("".join)


@FIXED
@given(texts)
def test_whole_text_can_be_written_and_keeps_what_was_whole(text):
    mended = whole_text(text)
    assert mended.encode().decode() == mended == whole_text(mended)
    try:
        text.encode()
    except UnicodeEncodeError:
        assert mended != text
        with pytest.raises(GTIError, match="name: got .* half a character"):
            check_text("name", {"key": [text]})
    else:
        assert mended == text == check_text("name", text)


def test_halves_that_belong_together_are_one_character():
    assert whole_text("\ud83d\ude00\ud83d") == "😀\ufffd" and whole_text("\ude00\ud83d") == "\ufffd\ufffd"


@dataclass
class Options:
    name: str = "a"
    tags: list[str] | None = None


@pytest.mark.parametrize("options", [Options("\ud83d"), Options(tags=["a", "\ud83d"])])
def test_settings_refuse_half_characters(options):
    with pytest.raises(GTIError, match=r"got '\\ud83d', which holds half a character"):
        check_fields(options)
    with pytest.raises(GTIError, match="half a character"):
        check_type("section", {"\ud83d": 1}, dict)


def test_nothing_is_written_of_text_that_cannot_be(tmp_path):
    with pytest.raises(GTIError, match="r.json: cannot be written as JSON"):
        write_json(tmp_path / "r.json", {"title": "\ud83d"})
    assert not list(tmp_path.iterdir())
