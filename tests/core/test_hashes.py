"core.hashes: the same content has the same hash in every process, and every change shows."

import os
import subprocess
import sys

import numpy as np
import pytest

from gti_nb.core import content_hash


def test_content_hash_is_the_same_in_every_process():
    value = "{'a': {'x'}.pop(), 'b': [1, 2.5, None, True]}"
    code = f"import numpy as np; from gti_nb.core import content_hash; print(content_hash({value}, np.arange(4)))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": s}
        ).stdout
        for s in ("1", "2")
    }
    assert seen == {content_hash({"b": [1, 2.5, None, True], "a": "x"}, np.arange(4)) + "\n"}


@pytest.mark.parametrize(
    "change",
    [lambda a: a.astype(np.int32), lambda a: a.reshape(2, 2), lambda a: a + np.array([0, 0, 0, 1]), lambda a: a.tolist(), lambda a: a[:3]],
)
def test_content_hash_sees_every_change(change):
    a = np.arange(4)
    assert content_hash(change(a)) != content_hash(a)
