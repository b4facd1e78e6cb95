"vibrent: outfits, groups and rentals."

import pytest
from data.folders import OUTFITS, RENTALS, VIBRENT, lay

from gti_nb.core import GTIError
from gti_nb.data.sources import read_source


def test_vibrent(tmp_path):
    items, events, name = read_source(lay(tmp_path / "vibrent", VIBRENT))
    assert items.values.tolist() == [
        ["outfit.aa", "Blue dress", "", "Dresses", "Ganni"],
        ["outfit.ab", "Blue dress", 'Silk; with "pockets"', "Dresses", "Ganni"],
        ["outfit.ba", "Sold-out tour T-shirt", "Cotton", "Tops, Knitwear", 'Mo"lli'],
        ["outfit.ca", "Hat", "", "", ""],
    ]
    assert events.values.tolist() == [
        ["customer.1", "outfit.ba", 1620000000],
        ["customer.1", "outfit.ab", 1577836800],
        ["customer.2", "outfit.zz", 1577836800],
        ["customer.2", "outfit.ca", 1577923200],
    ]
    items, events, _ = read_source(tmp_path / "vibrent", {"item_id": "group"})
    assert items.values.tolist() == [
        ["group.1", "Blue dress", 'Silk; with "pockets"', "Dresses", "Ganni"],
        ["group.2", "Sold-out tour T-shirt", "Cotton", "Tops, Knitwear", 'Mo"lli'],
        ["outfit.ca", "Hat", "", "", ""],
    ]
    assert events.item_id.tolist() == ["group.2", "group.1", "outfit.zz", "outfit.ca"]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda t: t.replace("['Ganni', 'Dresses', 'S', 'Summer']", "__import__('os').mkdir('ran')"),
            "outfits.csv, column 'outfit_tags': row 1 (line 2) is \"__import__",
        ),
        (lambda t: t.replace("'Size', 'Seasons'", "'Size'"), "outfits.csv: row 1 (line 2) has 4 outfit_tags for 3 tag_categories"),
        (lambda t: t.replace(";", ","), "outfits.csv: "),
        (lambda t: t.replace(";group;", ";garment;"), "outfits.csv: no column 'group', it has: 'id', 'name'"),
        (lambda t: t.replace("outfit.ba", ""), "outfits.csv, column 'id': row 3 (line 5) has no id"),
    ],
)
def test_spoilt_vibrent(tmp_path, monkeypatch, spoil, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GTIError) as e:
        read_source(lay(tmp_path / "v", VIBRENT | {"outfits.csv": spoil(OUTFITS)}))
    assert message in str(e.value) and not (tmp_path / "ran").exists()


def test_vibrent_rentals_name_the_line_and_other_columns_are_refused(tmp_path):
    lay(tmp_path, VIBRENT | {"user_activity_triplets.csv": RENTALS.replace("2020-01-02", "soon")})
    with pytest.raises(GTIError, match=r"user_activity_triplets.csv, column 'rentalPeriod.start': row 4 \(line 5\) is 'soon'"):
        read_source(tmp_path)
    with pytest.raises(GTIError, match="columns: item_id of Vibrent: got 'owner', allowed: 'id', 'group'"):
        read_source(tmp_path, {"item_id": "owner"})
    with pytest.raises(GTIError, match="title: a folder of Vibrent Clothes Rental has known columns"):
        read_source(tmp_path, {"title": "description"})
    with pytest.raises(GTIError, match="delimiter: a folder of Vibrent"):
        read_source(tmp_path, delimiter=";")
