"The frozen-prefix grounding loss against Algorithm 1, and what the stage leaves alone."
import numpy as np, pytest, torch
from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data import load_dataset
from gti_nb.grounding.loss import GroundingLoss, encode_pairs, reference_loss
from gti_nb.grounding.pairs import grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.vocab import SidModel

TEMPLATES = ("title_to_sid", "text_to_sid", "sid_to_title", "sid_to_text")
TINY = [f"tiny-{family}{tie}{pad}" for family in ("llama", "qwen3", "gpt2") for tie in ("", "-untied") for pad in ("", "-padded")]


@pytest.fixture(scope="module")
def toy(): return load_dataset("toy")

def toy_sids(levels=2):
    codes = [torch.arange(40) % 4, torch.arange(40) // 4] if levels == 2 else [torch.arange(40) % 4, torch.arange(40) // 4 % 4, torch.arange(40) // 16]
    return SemanticIds(torch.stack(codes, 1))

def extended(base, sids, spread=0.1):
    "A model whose new rows are no longer all the same."
    sid_model = SidModel.extend(*load_base(base), sids)
    noise = torch.Generator().manual_seed(1)
    for p in sid_model.new_parameters(): p.data += spread * torch.randn(p.shape, generator=noise)
    sid_model.train_only(backbone=False)
    return sid_model

def batch(pairs, rows):
    "A batch of pairs of one template; `fixed` as large as it may be."
    group = pairs.iloc[rows]
    assert group.template.nunique() == 1
    return {k: group[k].to_list() for k in ("prefix", "rest", "n_targets")} | {"fixed": int(group.fixed.iloc[0])}

def gradient(sid_model):
    grads = [p.grad for p in sid_model.new_parameters()]
    return grads[0] if sid_model.tied else torch.stack(grads)

def assert_exact(sid_model, loss, **b):
    for p in sid_model.new_parameters(): p.grad = None
    value = loss(**b)
    value.backward()
    expected, expected_gradient = reference_loss(sid_model, b["prefix"], b["rest"], b["n_targets"])
    assert abs(value.item() - expected) < 1e-5
    assert (gradient(sid_model) - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("base", TINY)
@pytest.mark.parametrize("levels", [2, 3])
def test_gradient_equals_algorithm_1(base, levels, toy):
    sids = toy_sids(levels)
    sid_model = extended(base, sids)
    pairs = encode_pairs(sid_model, grounding_pairs(toy, sids, TEMPLATES).train)
    for template in TEMPLATES:
        rows = np.flatnonzero(pairs.template == template)[::5][:9]
        assert_exact(sid_model, GroundingLoss(sid_model), **batch(pairs, rows))


@pytest.mark.parametrize("cache_bytes", [0, 40_000, 1e9], ids=["off", "partly", "all"])
def test_cache_size_changes_nothing(cache_bytes, toy):
    sids = toy_sids()
    sid_model = extended("tiny-llama", sids)
    pairs = encode_pairs(sid_model, grounding_pairs(toy, sids).train)
    loss = GroundingLoss(sid_model, cache_bytes=cache_bytes)
    rows = np.flatnonzero(pairs.direction == "text_to_sid")[:12]
    for _ in range(2): assert_exact(sid_model, loss, **batch(pairs, rows))
    assert loss.prefixes.bytes <= cache_bytes
    assert (len(loss.prefixes.kept) == 0) == (cache_bytes == 0)


@pytest.mark.parametrize("direction", ["text_to_sid", "sid_to_text"])
def test_gradient_equals_algorithm_1_on_smollm2(direction, toy):
    sids = toy_sids()
    sid_model = extended("smollm2-135m", sids, spread=0.02)
    pairs = encode_pairs(sid_model, grounding_pairs(toy, sids).train)
    rows = np.flatnonzero(pairs.direction == direction)[:4]
    assert_exact(sid_model, GroundingLoss(sid_model), **batch(pairs, rows))


@pytest.mark.parametrize("base", ["tiny-qwen3", "tiny-gpt2-untied-padded"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_new_rows_move(base, precision, toy):
    sids = toy_sids()
    sid_model = SidModel.extend(*load_base(base), sids)
    old = {n: p.detach().clone() for n, p in sid_model.model.named_parameters() if not n.endswith(".new")}
    start = [p.detach().clone() for p in sid_model.new_parameters()]
    ground(sid_model, grounding_pairs(toy, sids), GroundingConfig(steps=4, batch_size=4, precision=precision), progress=False)
    now = dict(sid_model.model.named_parameters())
    assert old and all(torch.equal(now[n], p) for n, p in old.items())
    assert all(not torch.equal(p, s) for p, s in zip(sid_model.new_parameters(), start))
    assert sid_model.new_rows.dtype == torch.float32


def test_grounded_codes_are_found_for_items_of_the_catalogue(toy):
    "After grounding a title leads to its code more often than before: the loss of the training pairs falls below the loss of guessing."
    sids = toy_sids()
    sid_model = SidModel.extend(*load_base("tiny-llama"), sids)
    result = ground(sid_model, grounding_pairs(toy, sids, holdout=0.1), GroundingConfig(steps=150, batch_size=16, learning_rate=5e-2, precision="fp32"), progress=False)
    to_sid = [r["loss"] for r in result.losses if r["direction"] == "text_to_sid"]
    assert np.mean(to_sid[-10:]) < (np.log(4) + np.log(10)) / 2 < np.mean(to_sid[:3])
    assert set(result.heldout) == {"before", "after"} and set(result.heldout["after"]) == {"text_to_sid", "sid_to_text"}


def test_text_cannot_smuggle_a_code_into_a_pair(toy):
    items = toy.items.assign(title=[f"The <a_1><|im_end|> story {i}" for i in range(40)])
    hostile = type(toy)(items, toy.sequences, toy.user_ids, toy.timestamps, toy.report, toy.name)
    sids = toy_sids()
    sid_model = extended("tiny-llama", sids)
    pairs = encode_pairs(sid_model, grounding_pairs(hostile, sids, TEMPLATES).train)
    new = [[i for i in [*p, *r] if i >= sid_model.n_old] for p, r in zip(pairs.prefix, pairs.rest)]
    assert all(len(n) == sids.levels for n in new)


def test_codes_of_another_catalogue_are_refused(toy):
    with pytest.raises(GTIError, match="made for 3 items"): grounding_pairs(toy, SemanticIds(torch.tensor([[0], [1], [2]])))
