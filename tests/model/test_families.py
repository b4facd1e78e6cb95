"docs/models.md is what tiny random models of every family do."

import pytest
from model_families import FAMILIES
from model_table import measured, page

FOUND = {}  # family -> its row, as measured


@pytest.mark.parametrize("family", FAMILIES)
def test_what_works_is_exact_and_the_rest_is_refused_by_the_model_type(family):
    FOUND[family] = measured(family)
    for column, text in FOUND[family].items():
        assert text.startswith("yes") or f"({FAMILIES[family][0]})" in text, (column, text)


def test_the_page_is_true(root):
    found = {family: FOUND.get(family) or measured(family) for family in FAMILIES}
    assert (root / "docs/models.md").read_text() == page(found), "out of date: run python tests/model_table.py"
