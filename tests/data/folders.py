"Small folders in the layouts in which data sets are published."

import gzip
import json

import pandas as pd


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
