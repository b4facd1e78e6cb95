"text.encoder: batches hold every row once, within the budget and with little padding."

import numpy as np
import pytest

from gti_nb.text import token_batches


@pytest.mark.parametrize("seed", range(5))
def test_batches_hold_every_row_once_within_the_budget(seed):
    rng = np.random.default_rng(seed)
    lengths = (1 + rng.geometric(rng.uniform(0.01, 0.3), int(rng.integers(1, 500)))).tolist()
    budget = int(rng.integers(1, 1000))
    batches = token_batches(lengths, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    areas = [len(b) * max(lengths[i] for i in b) for b in batches]
    assert all(a <= budget or len(b) == 1 for a, b in zip(areas, batches, strict=True))
    assert sum(areas) * 0.95 <= sum(lengths)
    firsts = [lengths[b[0]] for b in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_equal_lengths_fill_the_budget():
    assert list(map(len, token_batches([10] * 25, 100))) == [10, 10, 5]
