"The toy data, for all tests of fine-tuning."

import pytest

from gti_nb.data.dataset import load_dataset


@pytest.fixture(scope="session")
def toy():
    return load_dataset("toy")


@pytest.fixture(scope="session")
def split(toy):
    return toy.leave_one_out()
