"amazon: files of all three generations, and files that are damaged."

import gzip
import json

import datasets
import pytest
from data.folders import META_2014, REVIEWS, lay, rows

from gti_nb.core import GTIError
from gti_nb.data.amazon import amazon_2023_tables, plain_text
from gti_nb.data.sources import read_source

# 2014 and 2018


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
    "files, message",
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
def test_spoilt_amazon_pairs(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    lay(tmp_path / "a", {"reviews_B_5.json.gz": REVIEWS, "meta_B.json.gz": META_2014})
    assert len(read_source(tmp_path / "a")[0]) == 2
    with pytest.raises(GTIError) as e:
        read_source(lay(tmp_path / "a", files))
    assert message in str(e.value) and not (tmp_path / "ran").exists()


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


# 2023


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
        ("text", True, f"{mirror}/benchmark/5core/rating_only/Gift_Cards.csv"),
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
    "name, message",
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
def test_amazon_2023_names_that_are_wrong_need_no_network(mirror, monkeypatch, name, message, where):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked"))
    if where == "mirror":
        monkeypatch.setenv("GTI_AMAZON_2023", str(mirror))
    with pytest.raises(GTIError) as e:
        read_source(name)
    assert message in str(e.value)


META, CORE = "raw/meta_categories/meta_Gift_Cards.jsonl", "benchmark/5core/rating_only/Gift_Cards.csv"


@pytest.mark.parametrize(
    "files, message",
    [
        ({CORE: RATINGS.replace("B2,5.0", "B2")}, "Gift_Cards.csv: line 2 has 3 cells, the header has 4"),
        ({CORE: RATINGS + "AE9,B2,1.0,5,6\n"}, "Gift_Cards.csv: line 5 has 5 cells, the header has 4"),
        ({CORE: RATINGS + 'AE9,"B2,1.0,5\n'}, "Gift_Cards.csv: line 5 cannot be read"),
        ({CORE: RATINGS.replace("AE2,B1", ",B1")}, "Gift_Cards.csv, column 'user_id': row 3 has no id"),
        ({CORE: RATINGS.replace("parent_asin", "asin")}, "Gift_Cards.csv: no column 'parent_asin', it has: 'user_id', 'asin'"),
        ({CORE: RATINGS.splitlines()[0]}, "Gift_Cards.csv: no rows"),
        ({CORE: ""}, "Gift_Cards.csv: no rows"),
        ({CORE: RATINGS.encode() + b"\xff,B1,1.0,1\n"}, "Gift_Cards.csv: line 5 is not UTF-8 text"),
        ({META: json.dumps(product("B1")).encode() + b"\n\xff\n"}, "meta_Gift_Cards.jsonl: line 2 is not UTF-8 text"),
        ({META: '{"parent_asin": "B7"}\n{"parent_asin": "B1", \n'}, "meta_Gift_Cards.jsonl: line 2 is neither a JSON object"),
        ({META: [product("B8")]}, "meta_Gift_Cards.jsonl: none of the 2 products"),
    ],
)
def test_a_spoilt_mirror_is_refused_and_leaves_nothing_behind(mirror, files, message):
    with pytest.raises(GTIError) as e:
        amazon_2023_tables("Gift_Cards", root=lay(mirror, files))
    assert message in str(e.value)
    assert not list((mirror.parent / "cache").iterdir())


def test_folders_that_are_no_mirror_or_lack_a_file(mirror, tmp_path):
    with pytest.raises(GTIError, match="no mirror of Amazon Reviews 2023, expected files such as"):
        amazon_2023_tables("Gift_Cards", root=tmp_path)
    (mirror / META).unlink()
    with pytest.raises(GTIError, match="meta_Gift_Cards.jsonl: no such file in the mirror"):
        amazon_2023_tables("Gift_Cards", root=mirror)
    with pytest.raises(GTIError, match="a mirror of Amazon Reviews 2023; set GTI_AMAZON_2023 to it"):
        read_source(mirror)
