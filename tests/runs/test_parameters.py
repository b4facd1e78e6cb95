"Settings written in two ways at once."

import itertools

import pytest

from gti_nb.core import GTIError
from gti_nb.runs.parameters import fold_parameters, pipeline_parameters, pipeline_path

SPEC = pipeline_parameters(pipeline_path("train"))
FORMS = [{"sft": {"weights": 3}}, {"sft.weights": 3}, {"sft": {"weights": {"sequence": 1}}}, {"sft.weights.sequence": 2}]


@pytest.mark.parametrize("first, second", list(itertools.permutations(FORMS, 2)))
def test_a_setting_written_in_two_forms_is_refused_by_name(first, second):
    given = first | second
    if len(given) < 2:
        pytest.skip("one form replaces the other in a mapping")
    with pytest.raises(GTIError, match=r"sft\.weights.*set twice"):
        fold_parameters("train", SPEC, given)


def test_entries_with_two_dots_join_a_mapping_and_leave_the_one_given_alone():
    given = {"sft": {"weights": {"sequence": 1}}, "sft.weights.item2index": 2}
    for _ in range(2):
        assert fold_parameters("train", SPEC, given)["sft"]["weights"] == {"sequence": 1, "item2index": 2}
    assert given["sft"] == {"weights": {"sequence": 1}}
