"""A model's answers to users and queries, scored."""

import pytest
import torch

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.evaluate.model import evaluate_model, query_set, user_set
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sid.codes import SemanticIds


def test_queries_are_scored_by_grade_thresholds_too():
    wishes = load_queries("toy")
    sids = SemanticIds(torch.tensor([[i // 8, i % 8] for i in range(wishes.n_items)]))
    extended = ExtendedModel.extend(*load_base("tiny-llama"), sids)
    initialize(extended, "normal_matched")
    asked = query_set(extended, wishes, n=6)
    per_query = evaluate_model(extended, asked, beams=10, ks=[1, 10], thresholds={"any": 0.5, "none": 1e9})[1]
    assert (per_query["precision[any]@10"] == per_query["precision@10"]).all() and not per_query["precision[none]@10"].any()
    split = load_dataset("toy").leave_one_out()
    with pytest.raises(GTIError, match="thresholds: .*belong to queries"):
        evaluate_model(extended, user_set(extended, split, n=3), thresholds={"any": 1})
