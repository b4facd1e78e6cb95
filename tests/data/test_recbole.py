"recbole: atomic files, and MovieLens-100K."

import pytest
from data.folders import lay, rows

from gti_nb.assets import asset_path
from gti_nb.core import GTIError
from gti_nb.data.sources import read_source


def test_movielens_100k_by_name_and_as_a_recbole_folder():
    items, events, name = read_source("movielens-100k")
    assert (name, len(items), len(events), events.user_id.nunique()) == ("movielens-100k", 1682, 100_000, 943)
    assert {"The Lion King", "Toy Story", "The Tin Drum (Die Blechtrommel)", "A Fish Called Wanda"} <= set(items.title)
    assert not items.title.str.contains(r", (?:The|A|An|La|Le|Les|Il|Der|Die|Das)(?:$|\))").any()
    assert events.rating.value_counts().sort_index().tolist() == [6110, 11370, 27145, 34174, 21201] and events.timestamp.dtype == "int64"
    again = read_source(asset_path("movielens-100k", "data"))
    assert again[0].equals(items) and again[1].equals(events)


def test_recbole(tmp_path):
    lay(
        tmp_path / "amazon",
        {
            "amazon.inter": (
                "user_id:token\titem_id:token\trating:float\ttimestamp:float\nA1\tB2\t5.0\t1376006400.0\nA1\tB1\t4\t1376006401\n"
            ),
            "amazon.item": (
                "item_id:token\ttitle:token\tsales_rank:float\tcategories:token_seq\tbrand:token\tprice:float\n"
                "B1\t\"Fifth\" Piano's\t\t'Musical Instruments', 'Keys'\tYamaha\t9.5\n"
                "B2\tLion King, The\t3.0\tMusic\t\t\n"
            ),
        },
    )
    items, events, name = read_source(tmp_path / "amazon")
    assert items.values.tolist() == [
        ["B1", '"Fifth" Piano\'s', "", "Musical Instruments, Keys", "Yamaha"],
        ["B2", "Lion King, The", "", "Music", ""],
    ]  # no film, so no change of the title
    assert rows(events, "user_id", "item_id", "timestamp", "rating") == [["A1", "B2", 1376006400, 5.0], ["A1", "B1", 1376006401, 4.0]]


def test_recbole_with_other_names(tmp_path):
    lay(
        tmp_path,
        {
            "yelp.inter": "review_id:token\tuser_id:token\tbusiness_id:token\tstars:float\tdate:float\nr\tu\tb\t3.0\t7\n",
            "yelp.item": "business_id:token\titem_name:token_seq\tcategories:token_seq\nb\tCafé Zoë\tFood Café\n",
        },
    )
    with pytest.raises(GTIError, match="yelp.item: no column 'item_id', it has: 'business_id', 'item_name', 'categories'"):
        read_source(tmp_path)
    items, events, _ = read_source(tmp_path, {"item_id": "business_id", "timestamp": "date", "rating": "stars"})
    assert items.values.tolist() == [["b", "Café Zoë", "", "Food, Café"]] and events.values.tolist() == [["u", "b", 7, 3.0]]
    assert "timestamp" not in read_source(tmp_path, {"item_id": "business_id", "timestamp": None})[1]


def test_spoilt_recbole(tmp_path):
    lay(
        tmp_path,
        {"x.item": "item_id:token\ttitle:token\n1\tA\n", "x.inter": "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\nu\t\t2\n"},
    )
    with pytest.raises(GTIError, match=r"x.inter, column 'item_id': row 2 \(line 3\) has no id"):
        read_source(tmp_path)
    lay(tmp_path, {"x.inter": "user_id:token,item_id:token\nu,1\n"})
    with pytest.raises(
        GTIError, match="x.inter: one column 'user_id:token,item_id:token' when split at '.t'; the delimiter seems to be ','"
    ):
        read_source(tmp_path)


FILMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tdescription:token_seq\tclass:token_seq\tplot:token_seq\tmaker:token\n"
FILMS += "1\tLion King, The\t1994\tA cub returns.\tAnimation\tHakuna.\tDisney\n2\tFog, The\t\t\tunknown\tMist.\t\n"


@pytest.mark.parametrize(
    "columns, descriptions",
    [
        (None, ["A cub returns.", ""]),
        ({"description": "description"}, ["A cub returns.", ""]),
        ({"description": "plot"}, ["Hakuna.", "Mist."]),
        ({"description": ["summary", "plot"]}, ["Hakuna.", "Mist."]),
        ({"description": "release_year"}, ["Film from 1994", ""]),
        ({"description": None}, ["", ""]),
        ({"title": ["name", "movie_title"], "description": "plot"}, ["Hakuna.", "Mist."]),
        ({"title": "plot"}, ["A cub returns.", ""]),
    ],
)
def test_the_description_is_the_one_given(tmp_path, columns, descriptions):
    "A description is kept, and no year is made up."
    inter = "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\n"
    items, _, _ = read_source(lay(tmp_path, {"x.item": FILMS, "x.inter": inter}), columns)
    assert items.description.tolist() == descriptions
    plots = ["Hakuna.", "Mist."]
    assert items.title.tolist() == (plots if columns and columns.get("title") == "plot" else ["The Lion King", "The Fog"])


def test_every_column_can_be_named(tmp_path):
    inter = "u:token\ti:token\twhen:float\tstars:float\nA\t1\t1\t4\n"
    item = FILMS.replace("item_id", "i")
    columns = {"item_id": "i", "user_id": "u", "timestamp": "when", "rating": "stars", "brand": "maker", "categories": "plot"}
    items, events, _ = read_source(lay(tmp_path, {"x.item": item, "x.inter": inter}), columns)
    assert items.values.tolist()[0] == ["1", "The Lion King", "A cub returns.", "Hakuna.", "Disney"]
    assert events.values.tolist() == [["A", "1", 1, 4.0]]
    with pytest.raises(GTIError, match="no column 'nothing'"):
        read_source(tmp_path, columns | {"description": "nothing"})
