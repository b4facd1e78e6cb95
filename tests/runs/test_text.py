"runs: a parameter that cannot be written is refused before any work."

import pytest

from gti_nb.core import GTIError
from gti_nb.runs.parameters import Parameter, check_parameters

SPEC = {"data": Parameter("data", "str", "toy", ""), "options": Parameter("options", "dict", {}, "")}


@pytest.mark.parametrize(
    "given", [{"data": "x\udcff"}, {"options": {"\ud83d": 1}}, {"options": {"a": ["\ud83d"]}}, {"options.a": "\ud83d"}]
)
def test_half_characters_in_parameters(given):
    with pytest.raises(GTIError, match="prepare: parameter (data|options): .*half a character"):
        check_parameters("prepare", SPEC, given)
