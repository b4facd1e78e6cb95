"SASRec: the network against one written out by hand, the windows, early stopping, seeds, and what it may not read."

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.data.splits import Split
from gti_nb.evaluate.ranking import evaluate_ranking
from gti_nb.evaluate.sasrec import (
    SASRec,
    SASRecConfig,
    epoch_batches,
    next_item_loss,
    sasrec_lists,
    train_sasrec,
    training_windows,
    tune_sasrec,
)

QUICK = SASRecConfig(dim=16, window=8, batch_size=64, dropout=0.2, epochs=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def toy():
    return load_dataset("toy").leave_one_out()


def norm(x, layer):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-12).sqrt() * layer.weight + layer.bias


def by_hand(model, items):
    "The formulas of the paper with LayerNorm after each half, one history, one head after the other."
    x = norm(model.items.weight[items] + model.places.weight[: len(items)], model.norm)
    for layer in model.encoder.layers:
        q, k, v = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).chunk(3, -1)
        size, heads = q.shape[-1] // layer.self_attn.num_heads, []
        for h in range(layer.self_attn.num_heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            scores = torch.where(torch.ones_like(scores).tril().bool(), scores, -torch.inf)
            heads.append(scores.softmax(-1) @ v[:, part])
        x = norm(x + layer.self_attn.out_proj(torch.cat(heads, -1)), layer.norm1)
        z = layer.linear1(x)
        x = norm(x + layer.linear2(z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))), layer.norm2)
    return x


@pytest.mark.parametrize("dim, heads, layers, length", [(8, 1, 1, 1), (8, 2, 2, 5), (24, 4, 3, 12)])
def test_network_equals_the_formulas(dim, heads, layers, length):
    torch.manual_seed(dim)
    model = SASRec(30, SASRecConfig(dim=dim, heads=heads, layers=layers, window=12)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)  # biases and scales too
    items = torch.randint(30, (length,))
    with torch.no_grad():
        hand = by_hand(model, items)
    for grad in (True, False):  # PyTorch takes another way through the layers where no gradient is wanted
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(items[None])[0].detach(), hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.score([items.numpy()])[0], hand[-1] @ model.items.weight.T.detach(), rtol=1e-4, atol=1e-4)


def test_the_number_of_parameters_follows_from_the_formulas():
    n, d, w, layers = 1349, 64, 50, 2
    assert sum(p.numel() for p in SASRec(n, SASRecConfig()).parameters()) == n * d + w * d + 2 * d + layers * (
        4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    )


def test_loss_is_the_mean_over_real_places(toy):
    torch.manual_seed(0)
    model = SASRec(toy.n_items, QUICK).eval()
    batch = [(np.array([1, 2, 3]), np.array([2, 3, 4])), (np.array([7]), np.array([8]))]
    single = [-model.score([inputs[: k + 1]])[0].log_softmax(-1)[targets[k]] for inputs, targets in batch for k in range(len(inputs))]
    assert next_item_loss(model, batch).item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_every_item_but_the_first_is_a_target_once(seed):
    rng = np.random.default_rng(seed)
    sequences = [np.arange(1000 * u, 1000 * u + rng.integers(2, 40)) for u in range(30)]
    config = SASRecConfig(window=7, batch_size=20)
    windows = [w for batch in epoch_batches(sequences, config, rng) for w in batch]
    assert sorted(np.concatenate([t for _, t in windows]).tolist()) == sorted(i for s in sequences for i in s[1:].tolist())
    assert all(len(inputs) <= 7 and (targets == inputs + 1).all() for inputs, targets in windows)
    assert all(sum(len(t) for _, t in batch) < 20 + 7 for batch in epoch_batches(sequences, config, rng))


def test_cuts_move_from_epoch_to_epoch():
    rng = np.random.default_rng(0)
    firsts = {len(min(training_windows([np.arange(30)], 10, rng), key=lambda w: w[0][0])[0]) for _ in range(60)}
    assert firsts == set(range(1, 11))


def test_results_depend_on_the_seed_and_the_global_state_is_untouched(toy):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (train_sasrec(toy, replace(QUICK, seed=s), "cpu", progress=False) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert a.history.equals(b.history) and all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    assert not a.history.equals(c.history)


def test_best_epoch_is_kept_and_patience_ends_training(toy):
    result = train_sasrec(toy, replace(QUICK, epochs=60, patience=3), "cpu", progress=False)
    ndcg = result.history["ndcg@10"]
    assert len(ndcg) == min(60, int(ndcg.argmax()) + 4) and len(ndcg) < 60
    lists = sasrec_lists(result.model, toy, "valid", 10)
    assert evaluate_ranking(lists, toy.valid, ks=(10,))["ndcg@10"].mean() == pytest.approx(ndcg.max()) == result.ndcg


def test_test_items_are_not_read(toy):
    changed = replace(toy, test=np.roll(toy.test, 1))
    a, b = (train_sasrec(s, QUICK, "cpu", progress=False) for s in (toy, changed))
    assert np.array_equal(sasrec_lists(a.model, toy, "test"), sasrec_lists(b.model, changed, "test"))


def test_lists_leave_out_what_the_user_has_unless_items_repeat(toy):
    model = SASRec(toy.n_items, QUICK)
    lists = sasrec_lists(model, toy, "test", toy.n_items)
    assert all(set(row[row >= 0].tolist()) == set(range(toy.n_items)) - set(toy.past(u).tolist()) for u, row in enumerate(lists))
    assert (sasrec_lists(model, replace(toy, repeats=True), "test", toy.n_items) >= 0).all()


def test_learns_a_cycle():
    "Items that follow each other for certain are predicted for certain."
    sequences = [(np.arange(10) + start) % 12 for start in range(12)]
    split = Split([s[:-2] for s in sequences], np.array([s[-2] for s in sequences]), np.array([s[-1] for s in sequences]), 12, repeats=True)
    result = train_sasrec(
        split, SASRecConfig(dim=16, window=5, batch_size=16, dropout=0.0, learning_rate=1e-2, epochs=60, patience=60), "cpu", progress=False
    )
    assert (sasrec_lists(result.model, split, "test", 1)[:, 0] == split.test).all()


def test_users_without_history_or_without_a_validation_item():
    "A split by time has such users: they get the popular items, and do not decide when to stop."
    split = Split(
        [np.array([0, 1, 2, 1]), np.array([], dtype=np.int64), np.array([1, 2])],
        np.array([3, -1, -1]),
        np.array([-1, 2, 0]),
        5,
        repeats=True,
    )
    result = train_sasrec(split, replace(QUICK, epochs=2), "cpu", progress=False)
    assert sasrec_lists(result.model, split, "test", 3)[1].tolist() == [1, 2, 0]
    with pytest.raises(GTIError, match="no user has a validation item"):
        train_sasrec(replace(split, valid=np.full(3, -1)), QUICK, "cpu", progress=False)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(dim=0), "dim: got 0"),
        (dict(dim=9), "heads: got 2, allowed: a divisor"),
        (dict(dropout=1), "dropout: got 1"),
        (dict(learning_rate=0), "learning_rate: got 0"),
        (dict(seed=-1), "seed: got -1"),
        (dict(window=True), "window: got True"),
        (dict(patience=1.5), "patience: got 1.5"),
    ],
)
def test_settings_are_refused_by_name(wrong, says):
    with pytest.raises(GTIError, match=says):
        SASRecConfig(**wrong)


def test_a_diverging_run_says_so(toy):
    with pytest.raises(GTIError, match="lower learning_rate"):
        train_sasrec(toy, replace(QUICK, learning_rate=1e30), "cpu", progress=False)


def test_tuning_takes_the_best_of_the_grid(toy):
    best, table = tune_sasrec(
        toy, [dict(dim=8, epochs=1, learning_rate=1e-6), dict(dim=16, epochs=8, learning_rate=1e-2)], 3, "cpu", progress=False
    )
    assert table["ndcg@10"].argmax() == 1 and best.config.dim == 16 and best.config.seed == 3 and best.ndcg == table["ndcg@10"].max()
    with pytest.raises(GTIError, match="grid: got no settings"):
        tune_sasrec(toy, [])
