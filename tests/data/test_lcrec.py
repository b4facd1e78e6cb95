"lcrec: folders of LC-Rec, LETTER and MiniOneRec."

import pytest
from data.folders import LCREC, lay

from gti_nb.core import GTIError
from gti_nb.data.sources import read_source


def test_lcrec(tmp_path):
    items, events, name = read_source(lay(tmp_path / "Instruments", LCREC))
    assert name == "Instruments" and list(events) == ["user_id", "item_id"]
    assert items.values.tolist() == [
        ["0", "Pick <a_1>", "Thin. Light.", "Instruments,Guitar", "Fender"],
        ["2", "ドラム", "A, B", "X, Y", ""],
        ["1", "", "", "", ""],
    ]
    assert events.values.tolist() == [["7", "2"], ["7", "0"], ["7", "2"], ["3", "1"]]


@pytest.mark.parametrize(
    "files, message",
    [
        ({"Instruments.inter.json": {"1": "0 1"}}, "Instruments.inter.json: user '1' has a str, expected a list of items"),
        ({"Instruments.item.json": {"0": "Pick"}}, "Instruments.item.json: item '0' is a str, expected an object"),
        ({"Instruments.inter.json": b'{"1": [0],\n "2": [\xff]}'}, "Instruments.inter.json: line 2 is not UTF-8"),
        ({"Instruments.inter.json": '{"1": [0],\n "2": [1}'}, "Instruments.inter.json: not valid JSON at line 2"),
        ({"Instruments.inter.json": "[1]"}, "Instruments.inter.json: expected a JSON object that is not empty, got list"),
        ({"Instruments.item.json": "{}"}, "Instruments.item.json: expected a JSON object that is not empty, got nothing"),
        ({"Instruments.inter.json": ""}, "Instruments.inter.json: not valid JSON at line 1"),
        ({"Instruments.inter.json": {"1": [0, None]}}, "Instruments.inter.json, column 'item_id': row 2 has no id"),
        ({"Instruments.inter.json": {"1": []}}, "Instruments.inter.json: no rows"),
        ({"Instruments.inter.json": "[" * 99_999}, "Instruments.inter.json: not the expected JSON"),
        ({"Instruments.item.json": {"0": {"title": {"en": "Pick"}}}}, "Instruments.item.json, column 'title': row 1 holds a dict"),
    ],
)
def test_spoilt_lcrec(tmp_path, files, message):
    with pytest.raises(GTIError) as e:
        read_source(lay(lay(tmp_path, LCREC), files))
    assert message in str(e.value)
