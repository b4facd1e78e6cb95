"The folder of a trained model, its card, and the upload to the hub."

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from gti_nb.assets import EMBEDDED, load_base
from gti_nb.core import GTIError
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.sft import card
from gti_nb.sft.card import model_card, push_model, save_model
from gti_nb.sft.config import SFTConfig
from gti_nb.sid.codes import SemanticIds

FACTS = dict(
    arm="mean, grounded",
    data="movielens-100k",
    metrics={"recall@10": 0.25, "ndcg@10": 0.125},
    settings=SFTConfig(steps=9),
    licences={"item texts": "CC BY 4.0"},
)


def make_extended(base="tiny-llama"):
    extended = ExtendedModel.extend(*load_base(base), SemanticIds(torch.tensor([[0, 1], [2, 0], [1, 1]])))
    initialize(extended, "normal_matched")
    return extended


def test_the_card_says_arm_data_metrics_settings_and_terms():
    text = model_card(make_extended(), base="smollm2-135m", **FACTS)
    for part in (
        "mean, grounded",
        "movielens-100k",
        "| recall@10 | 0.25 |",
        "| ndcg@10 | 0.125 |",
        "| steps | 9 |",
        EMBEDDED["smollm2-135m"].terms,
        EMBEDDED["movielens-100k"].terms,
        "item texts: CC BY 4.0",
    ):
        assert part in text
    assert ModelCard(text).data.to_dict()["library_name"] == "transformers" and ModelCard(text).data.base_model is None
    assert ModelCard(model_card(make_extended(), base="org/model", **FACTS)).data.base_model == "org/model"


def test_hostile_names_break_no_table_and_paths_are_not_shown(tmp_path):
    text = model_card(
        make_extended(),
        arm="mean | <script>alert(1)</script>\n\n# own heading",
        data=str(tmp_path / "my-data"),
        base=str(tmp_path / "my-model"),
    )
    assert "<script" not in text and "\n# own" not in text and str(tmp_path) not in text and "my-data" in text and "my-model" in text


def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(GTIError, match="the disk is full"):
        save_model(make_extended(), tmp_path / "model", **FACTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-qwen3-untied", "tiny-gpt2-padded"])
def test_the_folder_loads_in_plain_transformers_and_here(base, tmp_path):
    extended, ids = make_extended(base), torch.arange(9)[None]
    folder = save_model(extended, tmp_path / "model", **FACTS)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, extended.model(ids).logits)
    torch.testing.assert_close(ExtendedModel.load(folder).model(ids).logits, extended.model(ids).logits)
    assert ModelCard.load(folder / "README.md").data.license == "other"


class Hub:
    "A hub that records the calls it gets."

    asked = []

    def create_repo(self, repo_id, **kw):
        self.asked.append((repo_id, kw))

    def upload_folder(self, folder_path, repo_id):
        self.asked.append((sorted(p.name for p in folder_path.iterdir()), repo_id))
        return "https://hub/commit"


def test_pushing_uses_the_hub_client_and_reports_its_errors(tmp_path, monkeypatch):
    folder = save_model(make_extended(), tmp_path / "model", **FACTS)
    monkeypatch.setattr(card, "HfApi", Hub)
    assert push_model(folder, "me/model") == "https://hub/commit"
    (repo, options), (files, _) = Hub.asked
    assert (
        repo == "me/model" and options == dict(private=True, exist_ok=True) and {"README.md", "model.safetensors", "gti.json"} <= set(files)
    )
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("401 Unauthorized\nlong story")))
    with pytest.raises(GTIError, match="me/model: the hub refused the upload: 401 Unauthorized; check"):
        push_model(folder, "me/model")
    with pytest.raises(GTIError, match="has no README.md"):
        push_model(tmp_path, "me/model")


def test_metrics_may_be_numpy_numbers():
    extended = ExtendedModel.extend(*load_base("tiny-llama"), {"<plus>": "adds two numbers"})
    assert "| recall@5 | 0.25 |" in model_card(extended, arm="mean", data="x", metrics={"recall@5": np.float32(0.25)})
