"sources: how a folder is recognised, and what is refused."

import json
import os
from pathlib import Path

import pytest
from data.folders import LATEST, LCREC, META_2014, REVIEWS, VIBRENT, lay

import gti_nb
from gti_nb.core import GTIError
from gti_nb.data import movielens
from gti_nb.data.sources import LAYOUTS, read_source


@pytest.mark.parametrize("a, b", [(".csv", ".csv"), (".tsv", ".jsonl"), (".jsonl", ".parquet"), (".parquet", ".tsv")])
def test_a_folder_of_two_tables(tmp_path, a, b):
    items, events, _ = read_source("toy")
    for frame, name in ((items, f"items{a}"), (events.assign(rating=3.0), f"interactions{b}")):
        if name.endswith("parquet"):
            frame.to_parquet(tmp_path / name)
        elif name.endswith("jsonl"):
            frame.to_json(tmp_path / name, orient="records", lines=True)
        else:
            frame.to_csv(tmp_path / name, index=False, sep="\t" if name.endswith("tsv") else ",")
    got = read_source(str(tmp_path))
    assert (
        got[0].values.tolist() == items.values.tolist()
        and got[1].values.tolist() == events.assign(rating=3.0).values.tolist()
        and got[2] == tmp_path.name
    )
    with pytest.raises(GTIError, match="no column 'sku'"):
        read_source(tmp_path, {"item_id": "sku"})


def test_every_layout_is_recognised_beside_foreign_files_and_no_two_at_once(tmp_path):
    folders = {
        "a": LATEST,
        "b": {"movies.dat": "1::T (1995)::Drama\n", "ratings.dat": "1::1::5::9\n"},
        "c": LCREC,
        "d": VIBRENT,
        "e": {"reviews_B_5.json.gz": REVIEWS, "meta_B.json.gz": META_2014},
        "f": {"B_5.json.gz": REVIEWS, "meta_B.json.gz": META_2014},
        "g": {"x.item": "item_id:token\ttitle:token\n1\tA\n", "x.inter": "user_id:token\titem_id:token\ttimestamp:float\nu\t1\t1\n"},
        "h": {"items.csv": "item_id,title\n1,A\n", "interactions.csv": "user_id,item_id,timestamp\nu,1,1\n"},
    }
    review = {"user_id": "u", "parent_asin": "B1", "asin": "B9", "timestamp": 5, "rating": 4.0}
    folders |= {
        "i": {"u.item": "7|T (1995)|x||y|" + "|".join("0" * 19) + "\n", "u.data": "1\t7\t3\t9\n", "u.genre": "unknown|0\n"},
        "j": {"meta_B.jsonl": [{"parent_asin": "B1", "title": "T"}], "B.jsonl": [review]},
        "k": {"meta_categories/meta_B.jsonl.gz": [{"parent_asin": "B1", "title": "T"}], "review_categories/B.jsonl.gz": [review]},
    }
    assert len(folders) == len(LAYOUTS), f"every layout needs a folder above: {', '.join(layout.name for layout in LAYOUTS)}"
    for name, files in folders.items():
        lay(tmp_path / name, files | {".DS_Store": b"x", "notes.json": "{}", "sub/items.csv": "x"})
        assert len(read_source(tmp_path / name)[1])
    lay(tmp_path / "a", folders["h"])
    both = r"tables \(items.csv \+ interactions.csv\); MovieLens latest, 25M \(movies.csv \+ ratings.csv\)"
    with pytest.raises(GTIError, match=f"2 data sets in it: {both}; keep the files of only one"):
        read_source(tmp_path / "a")
    lay(tmp_path / "e", {"reviews_B.json.gz": REVIEWS})
    both = r"Amazon 2014 \(meta_B.json.gz \+ reviews_B.json.gz\); Amazon 2014 \(meta_B.json.gz \+ reviews_B_5.json.gz\)"
    with pytest.raises(GTIError, match=f"2 data sets in it: {both}"):
        read_source(tmp_path / "e")


def test_a_folder_that_is_not_recognised_says_what_it_holds_and_what_would_be(tmp_path):
    lay(tmp_path, {"items.csv": "item_id,title\n1,A\n", "sub/x": "", **{f"f{i:02}.txt": "" for i in range(20)}})
    with pytest.raises(GTIError) as e:
        read_source(tmp_path)
    assert "no data set recognised; it holds: f00.txt, f01.txt" in str(e.value) and "and 10 more; known layouts:" in str(e.value)
    assert "published split (train.*" in str(e.value)
    assert all(layout.items in str(e.value) and layout.interactions in str(e.value) for layout in LAYOUTS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GTIError, match="it holds: nothing"):
        read_source(tmp_path / "empty")


@pytest.mark.parametrize("name", ["ml-1m.zip", "data.tar", "data.tar.gz", "DATA.TGZ", "vibrent.7z", "x.tar.zst"])
def test_archives_are_not_unpacked(tmp_path, name):
    with pytest.raises(GTIError, match="an archive; unpack it where you trust it .* and pass the folder"):
        read_source(lay(tmp_path, {name: b"PK"}) / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_names_and_places_that_do_not_exist(tmp_path):
    with pytest.raises(GTIError, match="got 'movielens-10k', allowed: .*did you mean 'movielens-100k'"):
        read_source("movielens-10k")
    with pytest.raises(GTIError, match="no such folder"):
        read_source(tmp_path / "nowhere")
    with pytest.raises(GTIError, match="a file, expected a folder; single files go as items="):
        read_source(lay(tmp_path, {"items.csv": "x"}) / "items.csv")
    with pytest.raises(GTIError, match="toy: its columns are known"):
        read_source("toy", {"title": "name"})


def test_an_unreadable_file_in_a_folder(tmp_path):
    lay(tmp_path, {"x.item.json": {"0": {"title": "A"}}, "x.inter.json": {"u": [0]}})
    (tmp_path / "x.item.json").unlink()
    os.symlink("x.item.json", tmp_path / "x.item.json")  # a link to itself
    with pytest.raises(GTIError, match="no data set recognised; it holds: x.inter.json, x.item.json"):
        read_source(tmp_path)


def test_movielens_100k_as_published_is_the_default_data_set(tmp_path):
    "The original files, written from RecBole's copy of them, give the same films and ratings."
    items, events, _ = read_source("movielens-100k")
    picked = items[items.description.str.fullmatch(r"Film from \d{4}") & ~items.title.str.contains("[(]")].head(200)
    lines = []
    for film in picked.itertuples():
        flags = ["1" if genre in film.categories.split(", ") else "0" for genre in movielens.GENRES]
        lines.append("|".join([film.item_id, f"{film.title} ({film.description[-4:]})", "01-Jan-1995", "", "http://", *flags]))
    rated = events[events.item_id.isin(picked.item_id)]
    lay(
        tmp_path,
        {
            "u.item": "\n".join(lines).encode("latin-1"),
            "u.data": rated[["user_id", "item_id", "rating", "timestamp"]].to_csv(sep="\t", header=False, index=False),
        },
    )
    again = read_source(tmp_path)
    assert again[0][["item_id", "title", "description"]].values.tolist() == picked[["item_id", "title", "description"]].values.tolist()
    assert [set(c.split(", ")) for c in again[0].categories] == [set(c.split(", ")) for c in picked.categories]
    assert again[1].values.tolist() == rated[["user_id", "item_id", "timestamp", "rating"]].values.tolist()


def test_a_wrong_line_of_u_item_is_named(tmp_path):
    lay(tmp_path, {"u.item": "7|T (1995)|x||y|0|1\n", "u.data": "1\t7\t3\t9\n"})
    with pytest.raises(GTIError, match=r"u.item: line 1 does not have 24 cells separated by '\|'"):
        read_source(tmp_path)


@pytest.mark.parametrize("events", ["Gift_Cards.csv", "Gift_Cards.jsonl", "Gift_Cards.jsonl.gz"])
def test_a_category_of_amazon_2023_in_a_folder(tmp_path, events):
    "Products with the ratings, the reviews, or packed reviews."
    meta = [
        {"parent_asin": "B1", "title": "Card &amp; <b>Box</b>", "description": ["Thin.", "Light."]},
        {"parent_asin": "B2", "title": "x"},
    ]
    review = {"user_id": "A1", "parent_asin": "B1", "asin": "B9", "timestamp": 1588687728923, "rating": 5.0, "text": "ok"}
    csv = "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1588687728923\n"
    lay(tmp_path, {"meta_Gift_Cards.jsonl": meta, events: csv if events.endswith("csv") else [review]})
    items, taken, _ = read_source(tmp_path)
    assert items[["item_id", "title", "description"]].values.tolist() == [["B1", "Card & Box", "Thin. Light."]]
    assert taken[["user_id", "item_id", "timestamp", "rating"]].values.tolist() == [["A1", "B1", 1588687728923, 5.0]]
    lay(tmp_path, {events: csv.replace("5.0", "five") if events.endswith("csv") else [{"user_id": "A1"}]})
    with pytest.raises(GTIError, match=r"Gift_Cards.*(line 2.*'five'|line 1 has no 'parent_asin')"):
        read_source(tmp_path)


def test_the_raw_download_of_amazon_2023_is_read_or_says_what_to_pass(tmp_path):
    files = {"meta_categories/meta_B.jsonl": [{"parent_asin": "B1", "title": "T"}]}
    files |= {"review_categories/B.jsonl": [{"user_id": "u", "parent_asin": "B1", "timestamp": 5, "rating": 4.0}]}
    lay(tmp_path / "raw", files)
    assert read_source(tmp_path / "raw")[0].title.tolist() == ["T"]
    with pytest.raises(GTIError, match=r"set GTI_AMAZON_2023 to it and load 'amazon-2023/<Category>', or, .* pass .*raw"):
        read_source(tmp_path)


def test_the_table_of_the_chapter_lists_every_layout():
    (chapter,) = Path(gti_nb.__file__).parent.parent.glob("nbs/03_data/*_sources.ipynb")
    text = "".join("".join(cell["source"]) for cell in json.loads(chapter.read_text())["cells"])
    for layout in LAYOUTS:
        assert f"| {layout.name} | `{layout.items}` | `{layout.interactions}` |" in text, layout.name
