"""The loss on held-out examples."""

import numpy as np
import pytest
import torch

from gti_nb.assets import load_base
from gti_nb.data.dataset import load_dataset
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft.loss import SFTLoss
from gti_nb.sft.tasks import make_tasks
from gti_nb.sft.validation import validation_loss
from gti_nb.sid.codes import SemanticIds


def test_the_validation_loss_is_the_mean_over_all_targets():
    films = load_dataset("toy")
    extended = ExtendedModel.extend(*load_base("tiny-llama"), SemanticIds(torch.tensor([[i // 8, i % 8] for i in range(40)])))
    initialize(extended, "normal_matched")
    (task,) = make_tasks("retrieval", extended, films, films.leave_one_out())
    examples = task.examples(np.random.default_rng(0))[:7]
    assert validation_loss(extended, examples, batch_size=3)()["loss"] == pytest.approx(SFTLoss(extended)(examples)[0].item(), abs=1e-5)
