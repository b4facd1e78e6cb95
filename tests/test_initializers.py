"Every initializer on every kind of model."
import math
import pytest
import torch
from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data import load_dataset
from gti_nb.initializers.base import draw_rows
from gti_nb.initializers.registry import INITIALIZERS, initialize
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vocab import SidModel

NAMES = ["mean", "hf_default", "normal", "normal_matched", "text_mean"]
BASES = ["tiny-llama", "tiny-llama-untied", "tiny-qwen3-padded", "tiny-gpt2", "tiny-gpt2-untied-padded"]


@pytest.fixture(scope="module")
def dataset(): return load_dataset("toy")


def extended(base: str) -> SidModel:
    sids = SemanticIds(torch.stack([torch.arange(40) // 8, torch.arange(40) % 8], 1), [torch.zeros(6, 0), torch.zeros(8, 0)])  # <a_5> is on no item
    return SidModel.extend(*load_base(base), sids)


def test_the_registry_has_them_all(): assert set(NAMES) <= set(INITIALIZERS)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", NAMES)
def test_start(base, name, dataset):
    model = extended(base); before = model.old_hash()
    report = initialize(model, name, dataset=dataset, seed=3)
    first = model.new_rows.detach().clone()
    assert first.isfinite().all() and first.dtype == torch.float32 and model.old_hash() == before
    assert 0 < report.p_new <= report.p_new_max < 1 and 0 < report.kl <= report.kl_max
    assert report.kl_max == pytest.approx(-math.log1p(-report.p_new_max), rel=1e-3)  # KL(p_old || p) = -ln(1 - p_new)
    assert (report.head_spread_ratio is None) == model.tied
    initialize(model, "mean"); initialize(model, name, dataset=dataset, seed=3)
    assert torch.equal(model.new_rows, first)
    if name in ("hf_default", "normal", "normal_matched"):
        initialize(model, name, dataset=dataset, seed=4)
        assert not torch.equal(model.new_rows, first)


@pytest.mark.parametrize("base", BASES)
def test_statistics_come_from_trained_rows_of_the_right_matrix(base):
    model = extended(base); initialize(model, "mean")
    assert torch.allclose(model.new_rows[0], model.old_rows[:model.n_old].double().mean(0).float(), atol=1e-7)
    if not model.tied: assert torch.allclose(model.new_head_rows[0], model.old_head_rows.double().mean(0).float(), atol=1e-7)


def test_padding_rows_play_no_part():
    plain, padded = load_base("tiny-qwen3"), load_base("tiny-qwen3-padded")
    n = len(plain[1])
    with torch.no_grad():
        padded[0].get_input_embeddings().weight[:n] = plain[0].get_input_embeddings().weight[:n]
        padded[0].get_input_embeddings().weight[n:] = 1e3
    words = {"<w_0>": "one", "<w_1>": "two"}
    a, b = SidModel.extend(*plain, words), SidModel.extend(*padded, words)
    for name in NAMES: assert torch.equal(draw_rows(a, name)[0], draw_rows(b, name)[0]), name


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-llama-untied"])
def test_hf_default_has_the_moments_of_transformers(base):
    "Standardized by transformers' own mean and covariance, the draws are white and of unit size."
    model = SidModel.extend(*load_base(base), {f"<w_{i}>": "" for i in range(400)})
    for rows, old in zip(draw_rows(model, "hf_default"), [model.old_rows, model.old_head_rows]):
        centred = old - old.mean(0)
        root = torch.linalg.cholesky(1e-9 * (centred.T @ centred / len(old)).double())
        white = torch.linalg.solve_triangular(root, (rows.double() - old.double().mean(0)).T, upper=False)
        assert white.square().mean().item() == pytest.approx(1, abs=.1)  # 12,800 numbers


def test_hf_default_is_the_mean_where_the_covariance_is_singular():
    model, tokenizer = load_base("tiny-llama")
    with torch.no_grad(): model.get_input_embeddings().weight[:, 0] = 0
    sid_model = SidModel.extend(model, tokenizer, {"<w_0>": "", "<w_1>": ""})
    rows, = draw_rows(sid_model, "hf_default")
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], draw_rows(sid_model, "mean")[0][0])


def test_text_mean_by_hand_and_a_code_without_items(dataset):
    model = extended("tiny-llama"); initialize(model, "text_mean", dataset=dataset)
    phi = torch.stack([model.old_rows[model.tokenizer.encode(t, add_special_tokens=False)].mean(0) for t in dataset.texts()])
    for row, items in ((2, [16, 17, 18, 19, 20, 21, 22, 23]), (6 + 3, [3, 11, 19, 27, 35]), (5, range(40))):
        assert torch.allclose(model.new_rows[row], phi[list(items)].mean(0), atol=1e-6)


@pytest.mark.parametrize("text", ["<a_1><b_2>", "<|im_end|>", "\x00", "🎬 مرحبا", "x" * 20_000, "<b>bold</b> &amp;", "\ud800"])
def test_text_mean_survives_any_text(dataset, text):
    data = load_dataset("toy"); data.items = data.items.astype(object); data.items.loc[0, ["title", "description", "categories"]] = [text, "", ""]
    model = extended("tiny-llama")
    with torch.no_grad(): model.old_rows[model.tokenizer.all_special_ids] = float("nan")  # a control token would show
    assert draw_rows(model, "text_mean", data)[0].isfinite().all()


def test_text_mean_without_any_text():
    data = load_dataset("toy"); data.items.loc[:, ["title", "description", "categories"]] = ""
    with pytest.raises(GTIError, match="none of the texts has a token"): draw_rows(extended("tiny-llama"), "text_mean", data)


def test_a_refused_start_changes_nothing(dataset):
    model = extended("tiny-llama"); initialize(model, "normal"); before = model.new_rows.detach().clone()
    for name, data in (("means", dataset), ("text_mean", None)):
        with pytest.raises(GTIError): initialize(model, name, dataset=data)
    small = load_dataset("toy"); small.items = small.items[:10]
    with pytest.raises(GTIError, match="has 10 items, the semantic IDs 40"): initialize(model, "text_mean", dataset=small)
    assert torch.equal(model.new_rows, before)


def test_biased_head_starts_at_the_mean_bias():
    model, tokenizer = load_base("tiny-llama-untied")
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.arange(float(len(head.weight))))
    sid_model = SidModel.extend(model, tokenizer, {"<w_0>": "", "<w_1>": ""})
    with torch.no_grad(): sid_model.head.new_bias.fill_(99)
    initialize(sid_model, "mean")
    assert sid_model.head.new_bias.tolist() == pytest.approx([(sid_model.n_old - 1) / 2] * 2)
    assert initialize(sid_model, "mean").kl_max <= math.log1p(2 / sid_model.n_old)
