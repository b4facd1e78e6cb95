"sources: small folders in the exact layouts people have, and everything that is wrong with a folder."

import gzip
import json
import os

import datasets
import pandas as pd
import pytest

from gti_nb.assets import asset_path
from gti_nb.core import GTIError
from gti_nb.data.amazon import amazon_2023_tables, plain_text
from gti_nb.data.movielens import natural_title
from gti_nb.data.sources import LAYOUTS, read_source


def lay(folder, files: dict):
    "Write files into a folder; text as UTF-8, lists as JSON lines, dicts as JSON, `.gz` packed."
    for name, content in files.items():
        if isinstance(content, dict):
            content = json.dumps(content, ensure_ascii=False)
        if isinstance(content, list):
            content = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in content)
        data = content.encode() if isinstance(content, str) else content
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def rows(frame: pd.DataFrame, *columns: str) -> list:
    return frame[list(columns)].values.tolist()


# MovieLens

LATEST = {
    "README.txt": "…",
    "links.csv": "movieId,imdbId,tmdbId\n1,0114709,862\n",
    "tags.csv": "userId,movieId,tag,timestamp\n2,60756,funny,1445714994\n",
    "movies.csv": (
        "movieId,title,genres\n"
        "1,Toy Story (1995),Adventure|Animation|Children|Comedy|Fantasy\n"
        '11,"American President, The (1995)",Comedy|Drama|Romance\n'
        '29,"City of Lost Children, The (Cité des enfants perdus, La) (1995)",Adventure|Fantasy\n'
        '73,"Misérables, Les (1995)",Drama|War\n'
        '7502,"Band of Brothers (2001–2003)",(no genres listed)\n'
        "40697,Babylon 5,Sci-Fi\n"
    ),
    "ratings.csv": "userId,movieId,rating,timestamp\n2,29,4.0,964982703\n1,1,4.0,964981247\n1,11,0.5,964982224\n1,99999,3.0,964982225\n",
}


def test_movielens_latest_small(tmp_path):
    items, events, name = read_source(lay(tmp_path / "ml-latest-small", LATEST))
    assert name == "ml-latest-small" and list(items) == ["item_id", "title", "description", "categories"]
    assert items.values.tolist() == [
        ["1", "Toy Story", "Film from 1995", "Adventure, Animation, Children, Comedy, Fantasy"],
        ["11", "The American President", "Film from 1995", "Comedy, Drama, Romance"],
        ["29", "The City of Lost Children (La Cité des enfants perdus)", "Film from 1995", "Adventure, Fantasy"],
        ["73", "Les Misérables", "Film from 1995", "Drama, War"],
        ["7502", "Band of Brothers", "Film from 2001", ""],
        ["40697", "Babylon 5", "Film from an unknown year", "Sci-Fi"],
    ]
    assert rows(events, "user_id", "item_id", "timestamp", "rating") == [
        ["2", "29", 964982703, 4.0],
        ["1", "1", 964981247, 4.0],
        ["1", "11", 964982224, 0.5],
        ["1", "99999", 964982225, 3.0],
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_1m_and_10m(tmp_path, encoding):
    movies = (
        "73::Misérables, Les (1995)::Drama|Musical\n"
        "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n"
        '1194::"Crocodile" Dundee, A (1986)::Comedy\n'
    )
    files = {
        "users.dat": "1::F::1::10::48067\n",
        "ratings.dat": "1::1193::5::978300760\n1::73::3::978302109\n",
        "movies.dat": movies.encode(encoding),
    }
    folder = lay(tmp_path / "ml-1m", files)
    items, events, name = read_source(folder)
    assert rows(items, "item_id", "title", "description", "categories") == [
        ["73", "Les Misérables", "Film from 1995", "Drama, Musical"],
        ["1193", "One Flew Over the Cuckoo's Nest", "Film from 1975", "Drama"],
        ["1194", 'A "Crocodile" Dundee', "Film from 1986", "Comedy"],
    ]
    assert rows(events, "user_id", "item_id", "timestamp", "rating") == [["1", "1193", 978300760, 5.0], ["1", "73", 978302109, 3.0]]


@pytest.mark.parametrize(
    "name, spoil, says",
    [
        ("ratings.dat", lambda t: t + "1::73::3\n", "ratings.dat: line 3 does not have 4 cells separated by '::'"),
        ("movies.dat", lambda t: t.replace("::", ";"), "movies.dat: line 1 does not have 3 cells"),
        ("ratings.dat", lambda t: t.replace("978302109", "later"), "ratings.dat, column 'timestamp': row 2 is 'later'"),
        ("ratings.dat", lambda t: t.replace("1::73", "::73"), "ratings.dat, column 'user_id': row 2 has no id"),
        ("ratings.dat", lambda t: "\n", "ratings.dat: empty file"),
    ],
)
def test_spoilt_movielens_1m(tmp_path, name, spoil, says):
    lay(tmp_path, {"movies.dat": "1::Toy Story (1995)::Comedy\n", "ratings.dat": "1::1193::5::978300760\n1::73::3::978302109\n"})
    lay(tmp_path, {name: spoil((tmp_path / name).read_text())})
    with pytest.raises(GTIError) as e:
        read_source(tmp_path)
    assert says in str(e.value)


def test_spoilt_movielens_csv_names_column_and_line(tmp_path):
    lay(tmp_path, LATEST | {"ratings.csv": LATEST["ratings.csv"].replace("964982224", "yesterday")})
    with pytest.raises(GTIError, match=r"ratings.csv, column 'timestamp': row 3 \(line 4\) is 'yesterday'"):
        read_source(tmp_path)
    lay(tmp_path, {"ratings.csv": "user,movie\n1,1\n"})
    with pytest.raises(GTIError, match="ratings.csv: no column 'userId', it has: 'user', 'movie'"):
        read_source(tmp_path)


def test_movielens_100k_by_name_and_as_a_recbole_folder():
    items, events, name = read_source("movielens-100k")
    assert (name, len(items), len(events), events.user_id.nunique()) == ("movielens-100k", 1682, 100_000, 943)
    assert {"The Lion King", "Toy Story", "The Tin Drum (Die Blechtrommel)", "A Fish Called Wanda"} <= set(items.title)
    assert not items.title.str.contains(r", (?:The|A|An|La|Le|Les|Il|Der|Die|Das)(?:$|\))").any()
    assert events.rating.value_counts().sort_index().tolist() == [6110, 11370, 27145, 34174, 21201] and events.timestamp.dtype == "int64"
    again = read_source(asset_path("movielens-100k", "data"))
    assert again[0].equals(items) and again[1].equals(events)


@pytest.mark.parametrize(
    "filed, said",
    [
        ("Postino, Il (Postman, The)", "Il Postino (The Postman)"),
        ("Seven (a.k.a. Se7en)", "Seven (a.k.a. Se7en)"),
        ("Vitelloni, I (a.k.a. Young and the Passionate, The)", "I Vitelloni (a.k.a. The Young and the Passionate)"),
        ("Adventures of Priscilla, Queen of the Desert, The", "The Adventures of Priscilla, Queen of the Desert"),
        ("Eye of Vichy, The (Oeil de Vichy, L')", "The Eye of Vichy (L'Oeil de Vichy)"),
        ("(500) Days of Summer", "(500) Days of Summer"),
        ("Girl, Interrupted", "Girl, Interrupted"),
        ("", ""),
        ("The", "The"),
        ("I, Worst of All (Yo, la peor de todas)", "I, Worst of All (Yo, la peor de todas)"),
    ],
)
def test_natural_titles(filed, said):
    assert natural_title(filed) == said


# Amazon 2014 and 2018

REVIEW = {"reviewerName": "x", "helpful": [0, 1], "reviewText": 'It\'s "good"', "summary": "Good", "reviewTime": "05 28, 2013"}
REVIEWS = [
    {"reviewerID": "A1", "asin": "0002", "overall": 5.0, "unixReviewTime": 1369699200} | REVIEW,
    {"reviewerID": "A1", "asin": "0001", "overall": 1.0, "unixReviewTime": 1369699200} | REVIEW,
    {"reviewerID": "A2", "asin": "0404", "overall": 3.0, "unixReviewTime": 1369699201} | REVIEW,
]
META_2014 = [
    {
        "asin": "0001",
        "title": "Soap &amp; Dish",
        "description": "It's <b>soft</b>.<br>\n\u200fצבע 👩‍🎨",
        "categories": [["Beauty", "Bath"], ["Beauty", "Gifts"]],
        "brand": "Acme",
        "price": 3.5,
        "salesRank": {"Beauty": 3},
    },
    {"asin": "0003", "title": "Nobody's", "related": {"also_bought": ["0001", "0002"]}},
    {"asin": "0002", "categories": [["Beauty"]]},
]


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
@pytest.mark.parametrize("core", ["", "_5"])
def test_amazon_2014(tmp_path, suffix, core):
    meta = "".join(repr(r) + "\n" for r in META_2014)  # not JSON: what Python prints
    items, events, name = read_source(lay(tmp_path / "beauty", {f"reviews_Beauty{core}{suffix}": REVIEWS, f"meta_Beauty{suffix}": meta}))
    assert items.values.tolist() == [
        ["0001", "Soap & Dish", "It's soft. \u200fצבע 👩‍🎨", "Beauty, Bath, Gifts", "Acme"],
        ["0002", "", "", "Beauty", ""],
    ]
    assert rows(events, "user_id", "item_id", "timestamp", "rating") == [
        ["A1", "0002", 1369699200, 5.0],
        ["A1", "0001", 1369699200, 1.0],
        ["A2", "0404", 1369699201, 3.0],
    ]


@pytest.mark.parametrize("reviews", ["All_Beauty_5.json.gz", "All_Beauty.json.gz", "reviews_All_Beauty_5.json.gz"])
def test_amazon_2018(tmp_path, reviews):
    meta = [
        {
            "asin": "0001",
            "title": "Soap &amp; Dish",
            "description": ["One.", "<p>Two.</p>", ""],
            "category": ["Beauty", "Bath", "</span></span></span>"],
            "brand": "Acme",
            "feature": ["f"],
            "also_buy": ["0002"],
        },
        {
            "asin": "0002",
            "title": "var aPageStart = (new Date()).getTime();",
            "description": [],
            "feature": ["Soft &amp; warm", "Blue"],
            "category": [],
        },
        {"asin": "0009", "title": "Unseen"},
    ]
    items, events, _ = read_source(lay(tmp_path, {reviews: REVIEWS, "meta_All_Beauty.json.gz": meta}))
    assert (
        items.values.tolist() == [["0001", "Soap & Dish", "One. Two.", "Beauty, Bath", "Acme"], ["0002", "", "Soft & warm Blue", "", ""]]
        and len(events) == 3
    )


@pytest.mark.parametrize(
    "files, says",
    [
        ({"reviews_B_5.json.gz": "{'reviewerID': 'A1', 'asin': '0001'}\n"}, "reviews_B_5.json.gz: line 1 has no 'unixReviewTime'"),
        ({"reviews_B_5.json.gz": '\n{"reviewerID": "A1", \n'}, "reviews_B_5.json.gz: line 2 is neither a JSON object nor a Python literal"),
        ({"reviews_B_5.json.gz": "[1]\n"}, "reviews_B_5.json.gz: line 1 is a list, expected an object"),
        ({"reviews_B_5.json.gz": json.dumps(REVIEWS[0]).encode() + b"\n\xff\xfe\n"}, "reviews_B_5.json.gz: line 2 is not UTF-8 text"),
        ({"reviews_B_5.json.gz": [REVIEWS[0] | {"unixReviewTime": "soon"}]}, "reviews_B_5.json.gz, column 'timestamp': row 1 is 'soon'"),
        (
            {"meta_B.json.gz": "{'asin': '0001', 'title': __import__('os').mkdir('ran')}\n"},
            "meta_B.json.gz: line 1 is neither a JSON object nor a Python literal",
        ),
        ({"meta_B.json.gz": "{'asin': '0001', 'title': " + "(" * 5000 + "}\n"}, "meta_B.json.gz: line 1 is neither"),
        ({"meta_B.json.gz": "{'asin': '0009'}\n"}, "meta_B.json.gz: none of the 3 products of reviews_B_5.json.gz is in it"),
    ],
)
def test_spoilt_amazon_pairs(tmp_path, monkeypatch, files, says):
    monkeypatch.chdir(tmp_path)
    lay(tmp_path / "a", {"reviews_B_5.json.gz": REVIEWS, "meta_B.json.gz": META_2014})
    assert len(read_source(tmp_path / "a")[0]) == 2
    with pytest.raises(GTIError) as e:
        read_source(lay(tmp_path / "a", files))
    assert says in str(e.value) and not (tmp_path / "ran").exists()


def test_packed_files_that_are_cut_or_grow_absurdly(tmp_path, monkeypatch):
    lay(tmp_path, {"reviews_B_5.json.gz": REVIEWS, "meta_B.json.gz": META_2014})
    good = (tmp_path / "reviews_B_5.json.gz").read_bytes()
    for data in (good[:-20], good[:30] + b"\0" * 9 + good[39:], b"plain"):
        (tmp_path / "reviews_B_5.json.gz").write_bytes(data)
        with pytest.raises(GTIError, match="reviews_B_5.json.gz: damaged"):
            read_source(tmp_path)
    (tmp_path / "reviews_B_5.json.gz").write_bytes(gzip.compress(b"\0" * (2**24 + 9)))
    with pytest.raises(GTIError, match="reviews_B_5.json.gz: line 1 is longer than 16,777,216 bytes; refused"):
        read_source(tmp_path)
    (tmp_path / "reviews_B_5.json.gz").write_bytes(gzip.compress((b" " * 2**20 + b"\n") * 70))
    with pytest.raises(GTIError, match="reviews_B_5.json.gz: unpacks to more than 200 times its"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    "raw, text",
    [
        ("a&nbsp;b &eacute;&#39;&quot;", "a b é'\""),
        ("&lt;b&gt;x&lt;/b&gt;y", "xy"),
        ("one<br />two<BR>three<p class='a'>four</P>", "one two three four"),
        ("<ul><li>A</li><li>B</li></ul>", "A B"),
        ("2 &lt; 3 &amp;amp; 5 &gt; 4", "2 < 3 & 5 > 4"),
        ("I <3 <a_1> <|im_end|> <unk>", "I <3 <a_1> <|im_end|> <unk>"),
        ("<!-- hidden -->x<script type='t'>var a = 1;</script>", "x"),
        ("🎬 \u200fשלום", "🎬 \u200fשלום"),
        ("<a href='x'>link</a>ed", "linked"),
        ("open <b and <i", "open <b and <i"),
        ("", ""),
        ("<!--" * 50_000, "<!--" * 50_000),
        ("<b " * 50_000, ("<b " * 50_000).strip()),
    ],
)
def test_html_is_dropped_and_nothing_else(raw, text):
    assert plain_text(raw) == text


# LC-Rec, LETTER, MiniOneRec

LCREC = {
    "Instruments.inter.json": {"7": [2, "0", 2], "3": ["1"], "5": []},
    "Instruments.index.json": {"0": ["<a_1>", "<b_2>"]},
    "Instruments.train.inter": "user_id:token\titem_id_list:token_seq\titem_id:token\n",
    "Instruments.item.json": {
        "0": {"title": "Pick <a_1>", "description": "Thin.\nLight.", "brand": "Fender", "categories": "Instruments,Guitar"},
        "2": {"title": "ドラム", "description": ["A", "B"], "categories": ["X", "Y"]},
        "1": {"description": None},
    },
}


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
    "files, says",
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
def test_spoilt_lcrec(tmp_path, files, says):
    with pytest.raises(GTIError) as e:
        read_source(lay(lay(tmp_path, LCREC), files))
    assert says in str(e.value)


# RecBole


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


# Vibrent

OUTFITS = (
    "id;name;description;group;owner;timeCreated;retailPrice;pricePerWeek;pricePerMonth;outfit_tags;tag_categories\n"
    "outfit.aa;Out of stock - Blue dress;;group.1;partner.x;2019-01-01 10:00:00;900;120;;"
    "['Ganni', 'Dresses', 'S', 'Summer'];['Brand', 'Category', 'Size', 'Seasons']\n"
    'outfit.ab;For sale - Sold - Blue dress;"Silk; with\n""pockets""";group.1;partner.x;2019-01-01 10:00:00;900;;;'
    "['Ganni', 'Dresses', 'M'];['Brand', 'Category', 'Size']\n"
    "outfit.ba;Sold-out tour T-shirt;Cotton;group.2;partner.x;2019-01-01 10:00:00;;;;"
    "\"['Mo\"\"lli', 'Tops', 'Knitwear', 'Tops']\";['Brand', 'Category', 'Category', 'Category']\n"
    "outfit.ca;Not available - Hat;;;partner.x;2019-01-01 10:00:00;;;;[];\n"
)
RENTALS = (
    "customer.id;outfit.id;rentalPeriod.start;rentalPeriod.end\n"
    "customer.1;outfit.ba;2021-05-03;2021-05-10\n"
    "customer.1;outfit.ab;2020-01-01;2020-01-08\n"
    "customer.2;outfit.zz;2020-01-01;2020-01-08\n"
    "customer.2;outfit.ca;2020-01-02;2020-01-09\n"
)
VIBRENT = {
    "outfits.csv": OUTFITS,
    "user_activity_triplets.csv": RENTALS,
    "original_orders.csv": RENTALS,
    "picture_triplets.csv": "picture.id;outfit.id;file_name;displayOrder\n",
    "picture_archive/a.jpg": b"",
}


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
    "spoil, says",
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
def test_spoilt_vibrent(tmp_path, monkeypatch, spoil, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GTIError) as e:
        read_source(lay(tmp_path / "v", VIBRENT | {"outfits.csv": spoil(OUTFITS)}))
    assert says in str(e.value) and not (tmp_path / "ran").exists()


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


# Amazon 2023


def product(asin: str, **fields) -> dict:
    return {
        "main_category": "Gift Cards",
        "title": f"Card {asin}",
        "average_rating": 4.8,
        "rating_number": 9,
        "features": [],
        "description": [],
        "price": None,
        "images": [{"thumb": "t", "large": "l", "variant": "MAIN", "hi_res": None}],
        "videos": [],
        "store": None,
        "categories": [],
        "details": {},
        "parent_asin": asin,
        "bought_together": None,
    } | fields


META_2023 = [
    product("B0UNSEEN"),
    product(
        "B2",
        price="from 5.00",
        details={"Package": {"a": 1}},
        store="Amazon",
        categories=["Gift Cards", "Occasions &amp; Co"],
        description=["<b>One.</b>", "Two."],
        features=["not shown"],
    ),
    product(
        "B1",
        price=3.5,
        details="{}",
        features=["Reloadable", "No fees 🎁"],
        subtitle="a column that only this one has",
        title="Card &amp; Box\u2028B1",
    ),
    product("B3", categories=None, title=None),
]
RATINGS = "user_id,parent_asin,rating,timestamp\nAE2,B2,5.0,1549866158332\nNA,B1,1.0,1549866158331\nAE2,B1,4.0,1349866158331\n"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("GTI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GTI_AMAZON_2023", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/read-only")  # not needed, and may not be writable
    many = [product(f"X{i:06}", price=[None, 2.5, "from 1"][i % 3], details={f"k{i}": i}) for i in range(300)]  # nobody took these
    return lay(
        tmp_path / "mirror",
        {
            "raw/meta_categories/meta_Gift_Cards.jsonl": many + META_2023 + many[:5],
            "raw/meta_categories/meta_Digital_Music.jsonl": [product("B1")],
            "raw/review_categories/Gift_Cards.jsonl": [],
            "benchmark/5core/rating_only/Gift_Cards.csv": RATINGS,
            "benchmark/5core/last_out/Gift_Cards.train.csv": RATINGS,
            "benchmark/0core/rating_only/Gift_Cards.csv": RATINGS + "AE9,B3,2.0,7\n",
            "benchmark/0core/rating_only/Digital_Music.csv": RATINGS,
        },
    )


def test_amazon_2023(mirror, monkeypatch):
    monkeypatch.setenv("GTI_AMAZON_2023", str(mirror))
    items, events, name = read_source("amazon-2023/Gift_Cards")
    assert name == "amazon-2023-Gift_Cards"
    assert items.values.tolist() == [
        ["B2", "Card B2", "One. Two.", "Gift Cards, Occasions & Co", "Amazon"],
        ["B1", "Card & Box B1", "Reloadable No fees 🎁", "Gift Cards", ""],
    ]
    assert rows(events, "user_id", "item_id", "timestamp", "rating") == [
        ["AE2", "B2", 1549866158332, 5.0],
        ["NA", "B1", 1549866158331, 1.0],
        ["AE2", "B1", 1349866158331, 4.0],
    ]
    assert events.timestamp.dtype == "int64"
    items, events, name = read_source("amazon-2023/Gift_Cards/0core")
    assert name == "amazon-2023-Gift_Cards-0core" and items.title.tolist() == ["Card B2", "Card & Box B1", ""] and len(events) == 4
    assert len(read_source("amazon-2023/Digital_Music/0core")[0]) == 1


def test_amazon_2023_is_streamed_by_datasets_once(mirror, monkeypatch):
    calls, real = [], datasets.load_dataset

    def counted(builder, **options):
        calls.append((builder, options["streaming"], options["data_files"]))
        return real(builder, **options)

    monkeypatch.setattr(datasets, "load_dataset", counted)
    first = amazon_2023_tables("Gift_Cards", root=mirror)
    again = amazon_2023_tables("Gift_Cards", root=str(mirror))
    assert calls == [
        ("csv", True, f"{mirror}/benchmark/5core/rating_only/Gift_Cards.csv"),
        ("text", True, f"{mirror}/raw/meta_categories/meta_Gift_Cards.jsonl"),
    ]
    assert all(a.equals(b) for a, b in zip(first, again, strict=True))
    with open(mirror / "benchmark/5core/rating_only/Gift_Cards.csv", "a") as f:
        f.write("AE3,B2,3.0,9\n")
    assert len(amazon_2023_tables("Gift_Cards", root=mirror)[1]) == 4 and len(calls) == 4  # another file, so another entry of the cache


def test_amazon_2023_asks_the_hub_for_files_by_their_path(mirror, monkeypatch):
    asked = []

    def no_network(builder, data_files, **options):
        asked.append(data_files)
        assert "trust_remote_code" not in options
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(
        GTIError,
        match="Books.csv: could not be read: Name or service not known; check the network, or set GTI_AMAZON_2023 to a local mirror$",
    ):
        read_source("amazon-2023/Books")
    assert asked == ["hf://datasets/McAuley-Lab/Amazon-Reviews-2023/benchmark/5core/rating_only/Books.csv"]
    assert not list((mirror.parent / "cache").iterdir())


@pytest.mark.parametrize(
    "name, says",
    [
        (
            "amazon-2023/Digital_Music",
            "amazon-2023/Digital_Music: there is no 5core of Digital_Music, only a 0core; ask for 'amazon-2023/Digital_Music/0core'",
        ),
        ("amazon-2023/Gift_Card", "did you mean 'Gift_Cards'?"),
        ("amazon-2023/Gift_Cards/10core", "core: got '10core', allowed: '5core', '0core'"),
        ("amazon-2023/Gift_Cards/5core/x", "data set: got"),
        ("amazon-2023", "did you mean 'amazon-2023/<Category>'?"),
        ("amazon-2023/", "data set: got"),
    ],
)
@pytest.mark.parametrize("where", ["hub", "mirror"])
def test_amazon_2023_names_that_are_wrong_need_no_network(mirror, monkeypatch, name, says, where):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked"))
    if where == "mirror":
        monkeypatch.setenv("GTI_AMAZON_2023", str(mirror))
    with pytest.raises(GTIError) as e:
        read_source(name)
    assert says in str(e.value)


META, CORE = "raw/meta_categories/meta_Gift_Cards.jsonl", "benchmark/5core/rating_only/Gift_Cards.csv"


@pytest.mark.parametrize(
    "files, says",
    [
        ({CORE: RATINGS.replace("4.0", "good")}, "Gift_Cards.csv, column 'rating': row 3 is 'good'"),
        ({CORE: RATINGS.replace("AE2,B1", ",B1")}, "Gift_Cards.csv, column 'user_id': row 3 has no id"),
        ({CORE: RATINGS.replace("parent_asin", "asin")}, "Gift_Cards.csv: could not be read"),
        ({CORE: RATINGS.splitlines()[0]}, "Gift_Cards.csv: no rows"),
        ({CORE: ""}, "Gift_Cards.csv: could not be read"),
        ({CORE: RATINGS.encode() + b"\xff,B1,1.0,1\n"}, "Gift_Cards.csv: line 5 is not UTF-8 text"),
        ({META: json.dumps(product("B1")).encode() + b"\n\xff\n"}, "meta_Gift_Cards.jsonl: line 2 is not UTF-8 text"),
        ({META: '{"parent_asin": "B7"}\n{"parent_asin": "B1", \n'}, "meta_Gift_Cards.jsonl: line 2 is neither a JSON object"),
        ({META: [product("B8")]}, "meta_Gift_Cards.jsonl: none of the 2 products"),
    ],
)
def test_a_spoilt_mirror_is_refused_and_leaves_nothing_behind(mirror, files, says):
    with pytest.raises(GTIError) as e:
        amazon_2023_tables("Gift_Cards", root=lay(mirror, files))
    assert says in str(e.value)
    assert not list((mirror.parent / "cache").iterdir())


def test_folders_that_are_no_mirror_or_lack_a_file(mirror, tmp_path):
    with pytest.raises(GTIError, match="no mirror of Amazon Reviews 2023, expected files such as"):
        amazon_2023_tables("Gift_Cards", root=tmp_path)
    (mirror / META).unlink()
    with pytest.raises(GTIError, match="meta_Gift_Cards.jsonl: no such file, the mirror lacks it"):
        amazon_2023_tables("Gift_Cards", root=mirror)
    with pytest.raises(GTIError, match="a mirror of Amazon Reviews 2023; set GTI_AMAZON_2023 to it"):
        read_source(mirror)


# The door


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
    assert len(folders) == len(LAYOUTS)
    for name, files in folders.items():
        lay(tmp_path / name, files | {".DS_Store": b"x", "notes.json": "{}", "sub/items.csv": "x"})
        assert len(read_source(tmp_path / name)[1])
    lay(tmp_path / "a", folders["h"])
    both = r"tables \(items.csv \+ interactions.csv\); MovieLens latest, 25M \(movies.csv \+ ratings.csv\)"
    with pytest.raises(GTIError, match=f"2 data sets in it: {both}; leave the files of one"):
        read_source(tmp_path / "a")
    lay(tmp_path / "e", {"reviews_B.json.gz": REVIEWS})
    both = r"Amazon 2014 \(meta_B.json.gz \+ reviews_B.json.gz\); Amazon 2014 \(meta_B.json.gz \+ reviews_B_5.json.gz\)"
    with pytest.raises(GTIError, match=f"2 data sets in it: {both}"):
        read_source(tmp_path / "e")


def test_a_folder_that_is_not_recognised_says_what_it_holds_and_what_would_be(tmp_path):
    lay(tmp_path, {"items.csv": "item_id,title\n1,A\n", "sub/x": "", **{f"f{i:02}.txt": "" for i in range(20)}})
    with pytest.raises(GTIError) as e:
        read_source(tmp_path)
    assert "no data set recognised; it holds: f00.txt, f01.txt" in str(e.value) and "and 10 more; recognised are:" in str(e.value)
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
