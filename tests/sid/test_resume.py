"A comparison of quantizers that was stopped does not train its networks again."

import pandas as pd
import pytest
import torch

from gti_nb.sid import rqvae
from gti_nb.sid.quantizers import compare_quantizers, plan_comparison

NETWORK = {"quantizer": "rqvae", "hidden": [8], "latent": 4, "epochs": 5}


def compared(vectors, out_dir):
    frame, _ = compare_quantizers(vectors, plan_comparison(["random", NETWORK], 2, 4, [0, 1], "cpu"), out_dir=out_dir)
    return frame.drop(columns="seconds")


def test_a_stopped_comparison_continues(tmp_path, monkeypatch):
    torch.manual_seed(0)
    vectors = torch.randn(30, 6)
    whole = compared(vectors, None)
    epoch, trained = rqvae.train_epoch, []

    def stopping(run):
        trained.append(run.epoch)
        if len(trained) == 8:  # in the second network
            raise KeyboardInterrupt
        return epoch(run)

    monkeypatch.setattr(rqvae, "train_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        compared(vectors, tmp_path)
    trained.clear()
    trained.append("again")
    pd.testing.assert_frame_equal(compared(vectors, tmp_path), whole)
    assert trained == ["again", 0, 1, 2, 3, 4]  # the first network was complete, the second had no checkpoint yet
