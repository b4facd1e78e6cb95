"text.templates: every way to write an item, and every way to ask for it wrongly."

import pytest

from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.text import item_texts


def test_templates():
    toy = load_dataset("toy")
    assert item_texts(toy) == item_texts(toy, "title+description+categories") == toy.texts()
    assert item_texts(toy, "title") == [toy.items.title[i] if toy.items.title[i] else "" for i in range(toy.n_items)]
    toy.items.loc[3, ["title", "description", "categories"]] = ["A {title} & <b>", "", "x"]
    assert item_texts(toy, "title+description")[3] == "A {title} & <b>"
    assert item_texts(toy, "{title} {description} {categories}")[3] == "A {title} & <b> x"
    assert item_texts(toy, "{{{title}}}")[3] == "{A {title} & <b>}"


@pytest.mark.parametrize(
    "template, says",
    [
        ("titel", "did you mean 'title'"),
        ("title+descripton", "did you mean 'title\\+description'"),
        ("", "allowed: 'title'"),
        (None, "got None"),
        (3, "got 3"),
        ("{titel}", "did you mean 'title'"),
        ("{}", "column: got ''"),
        ("{0}", "got '0'"),
        ("{title.__class__}", "allowed"),
        ("{title[0]}", "allowed"),
        ("{title!r}", "plain {title}"),
        ("{title:>9}", "plain {title}"),
        ("{title", "not a format string"),
        ("title}", "not a format string"),
        ("{{title}}", "no column"),
    ],
)
def test_wrong_templates(template, says):
    with pytest.raises(GTIError, match=says):
        item_texts(load_dataset("toy"), template)
