"movielens: folders of several releases, and natural titles."

import pytest
from data.folders import LATEST, lay, rows

from gti_nb.core import GTIError
from gti_nb.data.movielens import natural_title
from gti_nb.data.sources import read_source


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
    "name, spoil, message",
    [
        ("ratings.dat", lambda t: t + "1::73::3\n", "ratings.dat: line 3 does not have 4 cells separated by '::'"),
        ("movies.dat", lambda t: t.replace("::", ";"), "movies.dat: line 1 does not have 3 cells"),
        ("ratings.dat", lambda t: t.replace("978302109", "later"), "ratings.dat, column 'timestamp': row 2 is 'later'"),
        ("ratings.dat", lambda t: t.replace("1::73", "::73"), "ratings.dat, column 'user_id': row 2 has no id"),
        ("ratings.dat", lambda t: "\n", "ratings.dat: empty file"),
    ],
)
def test_spoilt_movielens_1m(tmp_path, name, spoil, message):
    lay(tmp_path, {"movies.dat": "1::Toy Story (1995)::Comedy\n", "ratings.dat": "1::1193::5::978300760\n1::73::3::978302109\n"})
    lay(tmp_path, {name: spoil((tmp_path / name).read_text())})
    with pytest.raises(GTIError) as e:
        read_source(tmp_path)
    assert message in str(e.value)


def test_spoilt_movielens_csv_names_column_and_line(tmp_path):
    lay(tmp_path, LATEST | {"ratings.csv": LATEST["ratings.csv"].replace("964982224", "yesterday")})
    with pytest.raises(GTIError, match=r"ratings.csv, column 'timestamp': row 3 \(line 4\) is 'yesterday'"):
        read_source(tmp_path)
    lay(tmp_path, {"ratings.csv": "user,movie\n1,1\n"})
    with pytest.raises(GTIError, match="ratings.csv: no column 'userId', it has: 'user', 'movie'"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    "filed, spoken",
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
def test_natural_titles(filed, spoken):
    assert natural_title(filed) == spoken
