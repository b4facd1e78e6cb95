"text: the real encoder against sentence-transformers' own way, and texts nobody expects."
import numpy as np
import pytest
import torch
from gti_nb.assets import asset_path
from gti_nb.core import GTIError
from gti_nb.text import encode_text

TEXTS = ["The Lion King. Film from 1994.", "x", "A long one " * 80, "", "مرحبا 🎬 <|im_end|>", "The Lion King. Film from 1994."]


def test_equals_the_plain_encoder():
    from sentence_transformers import SentenceTransformer
    plain = SentenceTransformer(str(asset_path("all-minilm-l6-v2", "encoder")), device="cpu")
    wanted = np.stack([plain.encode(t, normalize_embeddings=True, show_progress_bar=False) for t in TEXTS])
    got = encode_text(TEXTS, batch_size=2, device="cpu", progress=False)
    assert got.dtype == torch.float32 and torch.allclose(got, torch.tensor(wanted), atol=1e-5)
    assert torch.allclose(got.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-5)
    assert torch.allclose(got[0], got[5], atol=1e-5)


def test_no_noise_without_progress(capfd):
    encode_text(TEXTS[:1], progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("texts, says", [([], "at least one text"), ("one", "expected a list"), (["a", 3], "row 1 is 3 of type int"), (["a", None], "row 1 is None")])
def test_wrong_texts(texts, says):
    with pytest.raises(GTIError, match=says): encode_text(texts, progress=False)


def test_wrong_encoders(tmp_path):
    with pytest.raises(GTIError, match="did you mean 'all-minilm-l6-v2'"): encode_text(["a"], model="minilm-l6-v2", progress=False)
    with pytest.raises(GTIError, match="no \\*.safetensors"): encode_text(["a"], model=tmp_path, progress=False)
    with pytest.raises(GTIError, match="batch_size: got 0"): encode_text(["a"], batch_size=0, progress=False)
