"Every initializer on every kind of model, against the plainest computation of its formula."

import json
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from gti_nb.assets import load_base
from gti_nb.core import GTIError, write_json
from gti_nb.data.dataset import load_dataset
from gti_nb.initializers.base import InitContext, InitInputs, WordVectors
from gti_nb.initializers.codebook import RIDGE_PENALTIES, conjugate_gradients
from gti_nb.initializers.lexical import sparsemax, top_softmax, whole_words
from gti_nb.initializers.prior import NEUTRAL_TEXTS
from gti_nb.initializers.registry import INITIALIZERS, SUFFIXES, check_initializer, draw_start, find_initializer, initialize
from gti_nb.initializers.report import new_token_mass
from gti_nb.initializers.statistical import vocab_sample
from gti_nb.initializers.textual import ctfidf, text_rows
from gti_nb.model.extended import ExtendedModel
from gti_nb.model.rows import trained_rows
from gti_nb.prompts import Template, encode_template, fill
from gti_nb.runs.parameters import check_parameters, pipeline_parameters, pipeline_path
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.kmeans import RQKMeans

STATISTICAL = ["mean", "hf_default", "normal", "normal_matched", "mean_noise", "vocab_sample"]
INFORMED = ["text_mean", "ctfidf", "focus", "wechsel", "ridge", "procrustes", "additive"]
SUFFIXED = [
    "procrustes+centred_scale",
    "text_mean+level_offset",
    "ridge+centred_scale+level_offset",
    "text_mean+equal_prior",
    "procrustes+centred_scale+equal_prior+level_offset",
]
NAMES = [name for name in INITIALIZERS if name != "from_checkpoint"]
BASES = ["tiny-llama", "tiny-llama-untied", "tiny-qwen3-padded", "tiny-gpt2", "tiny-gpt2-untied-padded"]
BIASED = ["tiny-llama-biased", "tiny-llama-untied-biased"]
PROMPTS = ("The river is", "A film about love and war")


def base_of(name: str):
    "A tiny model and tokenizer; '-biased' gives its head a bias."
    model, tokenizer = load_base(name.removesuffix("-biased"))
    if name.endswith("-biased"):
        head = model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.randn(len(head.weight), generator=torch.Generator().manual_seed(5)))
    return model, tokenizer


def plain_sids() -> SemanticIds:
    return SemanticIds(
        torch.stack([torch.arange(40) // 8, torch.arange(40) % 8], 1), [torch.zeros(6, 0), torch.zeros(8, 0)]
    )  # <a_5> is on no item


def make_extended(base: str, sids: SemanticIds | None = None) -> ExtendedModel:
    return ExtendedModel.extend(*base_of(base), plain_sids() if sids is None else sids)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("toy")


@pytest.fixture(scope="module")
def vectors():
    return torch.nn.functional.normalize(torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture(scope="module")
def sids(vectors):
    return RQKMeans(levels=2, codes=5).fit(vectors)


@pytest.fixture(scope="module")
def words():
    return WordVectors(
        torch.arange(250, 300), torch.nn.functional.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    )


@pytest.fixture(scope="module")
def given(dataset, vectors, words):
    return dict(dataset=dataset, vectors=vectors, words=words)


def matrices(model: ExtendedModel) -> list[np.ndarray]:
    "Pretrained rows of every matrix, float64, the bias as last column of the output rows."
    rows = [model.pretrained_rows] if model.tied else [model.pretrained_rows, model.pretrained_head_rows]
    rows = [r.detach().double().numpy() for r in rows]
    if model.head.pretrained_bias is not None:
        rows[-1] = np.c_[rows[-1], model.head.pretrained_bias.detach().double().numpy()]
    return rows


def drawn(model: ExtendedModel, name: str, **given) -> list[np.ndarray]:
    "New rows in the form of `matrices`."
    rows = [r.numpy().astype(np.float64) for r in draw_start(model, name, **given)]
    return [*rows[:-2], np.c_[rows[-2], rows[-1]]] if model.head.pretrained_bias is not None else rows


def spread(x: np.ndarray, d: int | None = None) -> float:
    "Median distance from the mean, in the first d columns."
    return np.median(np.linalg.norm((x - x.mean(0))[:, :d], axis=1))


def rank(s: np.ndarray) -> float:
    "Effective rank from singular values."
    return np.exp(-(s / s.sum() * np.log(s / s.sum())).sum())


def phi_of(model: ExtendedModel, E: np.ndarray, texts) -> np.ndarray:
    return np.stack([E[model.tokenizer.encode(t, add_special_tokens=False)].mean(0) for t in texts])


def test_the_registry_has_them_all():
    assert {*STATISTICAL, *INFORMED, "from_checkpoint"} <= set(INITIALIZERS)
    assert set(SUFFIXES) >= {"centred_scale", "equal_prior", "level_offset"}
    for name in NAMES:
        assert find_initializer(name) == (INITIALIZERS[name], [])
        assert find_initializer(f"{name}+centred_scale+level_offset")[1] == [SUFFIXES["centred_scale"], SUFFIXES["level_offset"]]
        doc = INITIALIZERS[name].__doc__
        assert "E_t" in doc and "(" in doc, f"{name}: a docstring has the formula and its source"


@pytest.mark.parametrize("base", BASES + BIASED)
@pytest.mark.parametrize("name", NAMES + SUFFIXED)
def test_start(base, name, sids, given):
    model = make_extended(base, sids)
    before = model.pretrained_hash()
    with warnings.catch_warnings(action="ignore"):
        report = initialize(model, name, **given, seed=3, prompts=PROMPTS)
    first = [p.detach().clone() for p in model.new_parameters()]
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in first) and model.pretrained_hash() == before
    assert 0 < report.p_new <= report.p_new_max < 1 and 0 < report.kl <= report.kl_max and report.safe == (report.p_new <= 0.1)
    assert report.kl_max == pytest.approx(-math.log1p(-report.p_new_max), rel=1e-3)  # KL(p_pre || p) = -ln(1 - p_new)
    assert (report.head_spread_ratio is None) == (report.head_effective_rank is None) == model.tied
    initialize(model, "mean", prompts=PROMPTS[:1])
    for p, start in zip(model.new_parameters(), draw_start(model, name, **given, seed=3), strict=True):
        p.data.copy_(start)
    assert all(torch.equal(p, q) for p, q in zip(model.new_parameters(), first, strict=True))
    other = draw_start(model, name, **given, seed=4)[0]
    assert torch.equal(other, first[0]) == (name not in STATISTICAL[1:])


@pytest.mark.parametrize("base", BASES + BIASED)
def test_statistics_come_from_trained_rows_of_the_right_matrix(base):
    model = make_extended(base)
    for rows, E in zip(drawn(model, "mean"), matrices(model), strict=True):
        np.testing.assert_allclose(rows, np.tile(E[: model.n_pretrained].mean(0), (14, 1)), atol=1e-6)


def test_padding_rows_play_no_part(sids, given):
    plain, padded = load_base("tiny-qwen3"), load_base("tiny-qwen3-padded")
    n = len(plain[1])
    with torch.no_grad():
        for p, q in zip(padded[0].parameters(), plain[0].parameters(), strict=True):
            p[: len(q)] = q  # the embedding is the only longer one
        padded[0].get_input_embeddings().weight[n:] = 1e3
    a, b = ExtendedModel.extend(*plain, sids), ExtendedModel.extend(*padded, sids)
    for name in NAMES + SUFFIXED:
        assert torch.equal(draw_start(a, name, **given)[0], draw_start(b, name, **given)[0]), name


def test_unused_rows_play_no_part():
    "Rows that share their values with another: reserved tokens, zeros."
    model, tokenizer = load_base("tiny-llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[10:20] = -2.0
        model.get_input_embeddings().weight[300:304] = 50.0
    extended = ExtendedModel.extend(model, tokenizer, {f"<w_{i}>": "" for i in range(100)})
    used = np.r_[0:10, 20:300, 304 : extended.n_pretrained]
    assert trained_rows(extended.pretrained_rows).nonzero().flatten().tolist() == used.tolist()
    E = extended.pretrained_rows.detach().double().numpy()[used]
    np.testing.assert_allclose(draw_start(extended, "mean")[0][0], E.mean(0), atol=1e-6)
    np.testing.assert_allclose(extended.new_rows[0].detach(), E.mean(0), atol=1e-6)
    for row in draw_start(extended, "vocab_sample")[0].numpy():
        assert (E == row.astype(np.float64)).all(1).any()
    rows = np.concatenate([draw_start(extended, "normal_matched", seed=s)[0].numpy() for s in range(30)])
    assert np.trace(np.cov(rows.T)) == pytest.approx(np.trace(np.cov(E.T)), rel=0.1)
    assert initialize(extended, "mean").norm_pretrained == pytest.approx(np.median(np.linalg.norm(E, axis=1)), rel=1e-5)


def test_trained_rows_of_other_kinds():
    rows = torch.randn(50, 40)
    rows[3] = rows[40]
    rows[7, :20] = rows[8, :20]
    for x in (rows, rows.bfloat16()):
        assert (~trained_rows(x)).nonzero().flatten().tolist() == [3, 40]
    assert trained_rows(torch.ones(4, 3)).all(), "where all rows are equal, all count"


# %% formulas


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-llama-untied", "tiny-llama-untied-biased"])
def test_hf_default_has_the_moments_of_transformers(base):
    "Standardized by transformers' own mean and covariance, the draws are white and of unit size; a bias is drawn on its own."
    model = ExtendedModel.extend(*base_of(base), {f"<w_{i}>": "" for i in range(400)})
    matrix_rows = draw_start(model, "hf_default")
    bias = matrix_rows.pop() if base.endswith("biased") else None
    assert len(matrix_rows) == 2 - model.tied
    for rows, pretrained in zip(matrix_rows, [model.pretrained_rows, model.pretrained_head_rows], strict=False):
        centred = pretrained - pretrained.mean(0)
        root = torch.linalg.cholesky(1e-9 * (centred.T @ centred / len(pretrained)).double())
        white = torch.linalg.solve_triangular(root, (rows.double() - pretrained.double().mean(0)).T, upper=False)
        assert white.square().mean().item() == pytest.approx(1, abs=0.1)  # 12,800 numbers
    if bias is not None:
        assert (
            (bias.double() - model.head.pretrained_bias.double().mean()) / (1e-9**0.5 * model.head.pretrained_bias.double().std())
        ).std().item() == pytest.approx(1, abs=0.15)


def test_hf_default_is_the_mean_where_the_covariance_is_singular():
    model, tokenizer = load_base("tiny-llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 0
    extended = ExtendedModel.extend(model, tokenizer, {"<w_0>": "", "<w_1>": ""})
    (rows,) = draw_start(extended, "hf_default")
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], draw_start(extended, "mean")[0][0])


@pytest.mark.parametrize("base", ["tiny-llama-untied", "tiny-llama-untied-biased"])
def test_random_starts_of_both_matrices(base):
    model = ExtendedModel.extend(*base_of(base), {f"<w_{i}>": "" for i in range(600)})
    d, biased = 32, base.endswith("biased")
    for name, centre, deviation in (("normal", 0, model.model.config.initializer_range), ("mean_noise", 1, d**-0.5)):
        for rows, E in zip(drawn(model, name), matrices(model), strict=True):
            noise = rows - centre * E.mean(0)
            assert noise[:, :d].std() == pytest.approx(deviation, rel=0.05) and abs(noise[:, :d].mean()) < deviation / 20
            np.testing.assert_allclose(noise[:, d:], 0, atol=1e-7)  # no noise on a bias; `normal` has it at 0
        a, b = (x[:, :d] for x in drawn(model, name))
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05, "the two matrices have draws of their own"
    both = [
        [int((E == row).all(1).nonzero()[0][0]) for row in rows]
        for rows, E in zip(drawn(model, "vocab_sample"), matrices(model), strict=True)
    ]
    assert both[0] == both[1] and len(set(both[0])) > 200, "the same token in both matrices, with its bias"
    wanted = np.cov(matrices(model)[1].T, bias=True)
    rows = np.concatenate([drawn(model, "normal_matched", seed=s)[1] for s in range(20)])
    assert np.linalg.norm(np.cov(rows.T) - wanted) < 0.12 * np.linalg.norm(wanted), "a bias varies together with its row"
    assert rows.shape[1] == d + biased


@pytest.mark.parametrize("base", BASES + BIASED)
def test_text_mean_by_hand_and_a_code_without_items(dataset, base):
    model = make_extended(base)
    for rows, E in zip(drawn(model, "text_mean", dataset=dataset), matrices(model), strict=True):
        phi = phi_of(model, E, dataset.texts())
        for row, items in ((2, [16, 17, 18, 19, 20, 21, 22, 23]), (6 + 3, [3, 11, 19, 27, 35]), (5, range(40))):
            np.testing.assert_allclose(rows[row], phi[list(items)].mean(0), atol=1e-6)


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-llama-untied-biased"])
def test_ctfidf_by_hand(dataset, base):
    model = make_extended(base)
    ids = [model.tokenizer.encode(t, add_special_tokens=False) for t in dataset.texts()]
    for rows, E in zip(drawn(model, "ctfidf", dataset=dataset), matrices(model), strict=True):
        for start, size, codes in ((0, 6, torch.arange(40) // 8), (6, 8, torch.arange(40) % 8)):
            tf = np.zeros((size, model.n_pretrained))
            for item, code in zip(ids, codes.tolist(), strict=True):
                for w in item:
                    tf[code, w] += 1
            f, A = tf.sum(0), tf.sum() / (tf.sum(1) > 0).sum()
            for code in range(size):
                a = np.array([tf[code, w] * math.log(1 + A / f[w]) if f[w] else 0 for w in range(model.n_pretrained)])
                wanted = a @ E / a.sum() if a.sum() else phi_of(model, E, dataset.texts()).mean(0)
                np.testing.assert_allclose(rows[start + code], wanted, atol=1e-6)


def residual_cosines(sids, words):
    "Cosines of every code with the words, deeper levels after quantizing the words with the levels above."
    cosines, left = [], words.vectors.double().numpy().copy()
    for book in sids.codebooks:
        book = book.double().numpy()
        cosines.append(np.array([[c @ w / np.linalg.norm(c) / np.linalg.norm(w) for w in left] for c in book]))
        left = np.stack([w - min(book, key=lambda c: np.linalg.norm(w - c)) for w in left])
    return np.concatenate(cosines)


def simplex_projection(z):
    "sparsemax by bisection of its threshold."
    low, high = z.min() - 1, z.max()
    for _ in range(200):
        tau = (low + high) / 2
        low, high = (tau, high) if np.maximum(z - tau, 0).sum() > 1 else (low, tau)
    return np.maximum(z - tau, 0)


def test_sparsemax_and_top_softmax():
    scores = torch.randn(20, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    np.testing.assert_allclose(sparsemax(scores), [simplex_projection(z) for z in scores.numpy()], atol=1e-10)
    soft = top_softmax(scores)
    assert ((soft > 0).sum(1) == 10).all() and torch.allclose(soft.sum(1), torch.ones(20).double())
    assert torch.allclose(top_softmax(scores, k=99), (scores / 0.1).softmax(1)), "fewer words than k"


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded", "tiny-llama-untied-biased"])
def test_focus_and_wechsel_by_hand(base, sids, words):
    model = make_extended(base, sids)
    cosines = residual_cosines(sids, words)

    def softmax_of_ten(z):
        top = np.argsort(-z)[:10]
        a = np.zeros(len(z))
        a[top] = np.exp(z[top] / 0.1)
        return a / a.sum()

    for name, weights in (("focus", simplex_projection), ("wechsel", softmax_of_ten)):
        for rows, E in zip(drawn(model, name, words=words), matrices(model), strict=True):
            np.testing.assert_allclose(rows, np.stack([weights(z) @ E[words.ids.numpy()] for z in cosines]), atol=1e-5)


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded", "tiny-llama-untied-biased"])
def test_ridge_by_hand(base, sids, given, vectors, dataset):
    model, z = make_extended(base, sids), vectors.double().numpy()
    energy = np.square(z - z.mean(0)).sum() / 40
    for rows, E in zip(drawn(model, "ridge", **given), matrices(model), strict=True):
        phi = phi_of(model, E, dataset.texts())
        zc, pc = z - z.mean(0), phi - phi.mean(0)
        fits = {k: Ridge(alpha=k * energy, fit_intercept=False).fit(zc, pc) for k in RIDGE_PENALTIES}

        def left_out(k, zc=zc, pc=pc):
            hat = zc @ np.linalg.solve(zc.T @ zc + k * energy * np.eye(6), zc.T)
            return np.square((pc - hat @ pc) / (1 - np.diag(hat))[:, None]).mean()

        A = fits[min(RIDGE_PENALTIES, key=left_out)].coef_.T
        wanted = np.concatenate(
            [phi.mean(0) + (sids.codebooks[0].double().numpy() - z.mean(0)) @ A, phi.mean(0) + sids.codebooks[1].double().numpy() @ A]
        )
        np.testing.assert_allclose(rows, wanted, atol=1e-5)


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded", "tiny-llama-untied-biased"])
def test_procrustes_by_hand(base, sids, given, vectors, dataset):
    model, z = make_extended(base, sids), vectors.double().numpy()
    for rows, E in zip(drawn(model, "procrustes", **given), matrices(model), strict=True):
        left, right = PCA(6).fit(z), PCA(6).fit(phi := phi_of(model, E, dataset.texts()))
        R, strength = orthogonal_procrustes(left.transform(z), right.transform(phi))
        scale = strength / np.square(left.transform(z)).sum()
        for level, (start, book) in enumerate(zip((0, 5), sids.codebooks, strict=True)):
            book = book.double().numpy()
            offset = book[sids.codes[:, level]].mean(0)
            wanted = E.mean(0) + scale * (book - offset) @ left.components_.T @ R @ right.components_
            np.testing.assert_allclose(rows[start : start + 5], wanted, atol=1e-5)


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded", "tiny-llama-untied-biased"])
def test_additive_by_hand(base, sids, dataset):
    model = make_extended(base, sids.resolve("extra_level"))
    S = np.concatenate([np.eye(size)[model.sids.codes[:, level]] for level, size in enumerate(model.sids.level_sizes)], 1)
    for rows, E in zip(drawn(model, "additive", dataset=dataset), matrices(model), strict=True):
        phi = phi_of(model, E, dataset.texts())
        wanted = E.mean(0) + Ridge(alpha=1, fit_intercept=False).fit(S, phi - phi.mean(0)).coef_.T
        np.testing.assert_allclose(rows, wanted, atol=1e-5)


def test_additive_separates_what_the_mean_mixes(dataset):
    "Rows built as sums of effects: main effects find those of the second level, means blur them with the first."
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 32)), rng.normal(size=(4, 32)) / 10
    codes = np.stack([rng.integers(4, size=400), np.zeros(400, int)], 1)
    codes[:, 1] = np.where(rng.random(400) < 0.7, codes[:, 0], rng.integers(4, size=400))  # levels that go together
    phi = first[codes[:, 0]] + second[codes[:, 1]]
    S = np.concatenate([np.eye(4)[codes[:, level]] for level in (0, 1)], 1)
    from scipy.sparse import csr_array

    B = conjugate_gradients(csr_array(S.T @ S + np.eye(8)), S.T @ (phi - phi.mean(0)))

    def centre(x):
        return (x - x.mean(0)).ravel()

    means = np.stack([phi[codes[:, 1] == k].mean(0) for k in range(4)])
    truth = centre(second)
    assert np.corrcoef(centre(B[4:]), truth)[0, 1] > 0.9 > 0.5 > np.corrcoef(centre(means), truth)[0, 1]


def test_conjugate_gradients_of_a_large_catalogue():
    from scipy.sparse import csr_array, eye_array

    rng = np.random.default_rng(1)
    S = csr_array(
        (np.ones(6000), (np.repeat(np.arange(2000), 3), (rng.zipf(1.5, (2000, 3)) % 300 + [0, 300, 600]).ravel())), shape=(2000, 900)
    )
    G, right = csr_array(S.T @ S + eye_array(900)), S.T @ rng.normal(size=(2000, 5))
    right[:, 0] = 0
    np.testing.assert_allclose(conjugate_gradients(G, right), np.linalg.solve(G.toarray(), right), atol=1e-8)


# %% suffixes


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded", "tiny-llama-untied-biased"])
def test_suffixes_by_hand(base, sids, given):
    model = make_extended(base, sids)
    letters = [model.tokenizer.encode(f" {letter}", add_special_tokens=False) for letter in "ab"]
    each = [
        drawn(model, f"procrustes{suffix}", **given) for suffix in ("", "+level_offset", "+centred_scale", "+centred_scale+level_offset")
    ]
    for plain, offset, scaled, both, E in zip(*each, matrices(model), strict=True):
        a, b = (E[i].mean(0) for i in letters)
        moved = np.repeat([(a - b) / 2, (b - a) / 2], 5, axis=0)
        np.testing.assert_allclose(offset, plain + moved, atol=1e-5)
        np.testing.assert_allclose(scaled, E.mean(0) + spread(E, 32) / spread(plain, 32) * (plain - plain.mean(0)), atol=1e-5)
        np.testing.assert_allclose(both, scaled + moved, atol=1e-5)


def mean_state(model: ExtendedModel, template, level: int) -> torch.Tensor:
    "Mean over the neutral texts, or over sixteen items' codes after them, of the last hidden state, one forward pass each."
    prompt, states = encode_template(model.tokenizer, template), []
    items = (
        torch.randint(model.sids.n_items, (16,), generator=torch.Generator().manual_seed(0)).tolist()
        if level
        else range(len(NEUTRAL_TEXTS))
    )
    for i, item in enumerate(items):
        text = NEUTRAL_TEXTS[i % len(NEUTRAL_TEXTS)]
        ids, start = fill(prompt, title=text, text=text, sid=[])
        ids = ids[:start] + (model.token_ids[item, :level].tolist() if level else [])
        with torch.no_grad():
            states.append(model.backbone(torch.tensor([ids])).last_hidden_state[0, -1])
    return torch.stack(states).mean(0).double()


@pytest.mark.parametrize("base", BASES + BIASED)
def test_equal_prior_by_hand(base, sids, given):
    "At the mean state all codes of a level score alike; rows move along that state only."
    model, template = make_extended(base, sids), Template("mine", "Name it:\n{title}", "{sid}")
    before = [p.detach().clone() for p in model.new_parameters()]
    model.model.train()
    plain, equal = drawn(model, "ctfidf", **given), drawn(model, "ctfidf+equal_prior", ask=template, **given)
    assert all(torch.equal(p, q) for p, q in zip(model.new_parameters(), before, strict=True)) and model.model.training
    model.model.eval()
    if not model.tied:
        np.testing.assert_array_equal(plain[0], equal[0])  # nothing is scored by the embedding
    for p, start in zip(model.new_parameters(), draw_start(model, "ctfidf+equal_prior", ask=template, **given), strict=True):
        p.data.copy_(start)
    d = model.pretrained_rows.shape[1]
    for level, rows in ((0, slice(0, 5)), (1, slice(5, 10))):
        h = mean_state(model, template, level).numpy()
        if equal[-1].shape[1] > d:
            h = np.append(h, 1)
        np.testing.assert_allclose(equal[-1][rows] @ h, np.full(5, (plain[-1][rows] @ h).mean()), atol=2e-4)
        moved = equal[-1][rows] - plain[-1][rows]
        np.testing.assert_allclose(moved, np.outer(moved @ h / (h @ h), h), atol=1e-5)
        assert np.abs(moved).max() > 1e-4


def test_equal_prior_of_described_tokens():
    described = ExtendedModel.extend(*load_base("tiny-llama"), [("one", "<w_0>"), ("two things", ["<w_1>", "<w_2>"])])
    plain, equal = (draw_start(described, name)[0] for name in ("text_mean", "text_mean+equal_prior"))
    assert not torch.equal(plain, equal) and torch.equal(equal[1], equal[2])
    assert torch.allclose(draw_start(described, "mean+equal_prior")[0], draw_start(described, "mean")[0], atol=1e-7)


def test_suffixes_that_have_nothing_to_do():
    described = ExtendedModel.extend(*load_base("tiny-llama"), {"<w_0>": "one", "<w_1>": "two"})
    assert torch.equal(draw_start(described, "text_mean+level_offset")[0], draw_start(described, "text_mean")[0])
    assert torch.equal(draw_start(described, "mean+centred_scale")[0], draw_start(described, "mean")[0])


def test_names_of_composed_starts(tmp_path):
    model = make_extended("tiny-llama")
    for name, message in (
        ("normal+level_offset+centred_scale", "did you mean 'normal\\+centred_scale\\+level_offset'"),
        ("normal+centered_scale", "did you mean 'centred_scale'"),
        ("normal+", "suffix of initializer 'normal\\+': got ''"),
        ("+centred_scale", "initializer: got ''"),
        ("normal+level_offset+level_offset", "each suffix once"),
        (None, "initializer: got None"),
    ):
        with pytest.raises(GTIError, match=message):
            draw_start(model, name)
    spec = pipeline_parameters(pipeline_path("train"))
    for name in NAMES + SUFFIXED:
        assert check_parameters("train", spec, {"init": name})["init"] == check_initializer(name)
    with pytest.raises(GTIError, match="did you mean 'centred_scale'"):
        check_parameters("train", spec, {"init": "procrustes+centred_scal"})


def halfway(context: InitContext) -> torch.Tensor:
    "Between the mean and a random pretrained row."
    return (context.mu + vocab_sample(context)) / 2


def test_an_initializer_of_your_own(monkeypatch):
    monkeypatch.setitem(INITIALIZERS, "mine", halfway)
    model = make_extended("tiny-llama-untied-biased")
    for rows, E in zip(drawn(model, "mine", seed=1), matrices(model), strict=True):
        sample = 2 * rows - E.mean(0)
        assert np.abs(E[:, None] - sample[None]).max(2).min(0).max() < 1e-5
    report = initialize(model, "mine+centred_scale")
    assert report.name == "mine+centred_scale" and report.spread_ratio == pytest.approx(1, rel=1e-4)


def test_a_function_is_a_start():
    model = make_extended("tiny-llama-untied")
    assert initialize(model, halfway, seed=2).name == "halfway"
    assert all(torch.equal(p, q) for p, q in zip(model.new_parameters(), draw_start(model, halfway, seed=2), strict=True))


def test_a_name_with_a_plus_is_refused(monkeypatch):
    monkeypatch.setitem(INITIALIZERS, "half+way", halfway)
    with pytest.raises(GTIError, match="the name 'half\\+way' contains '\\+'"):
        check_initializer("half+way")


# %% inputs


@pytest.mark.parametrize("text", ["<a_1><b_2>", "<|im_end|>", "\x00", "🎬 مرحبا", "x" * 20_000, "<b>bold</b> &amp;", "\ud800"])
def test_text_starts_survive_any_text(dataset, text):
    data = load_dataset("toy")
    data.items = data.items.astype(object)
    data.items.loc[0, ["title", "description", "categories"]] = [text, "", ""]
    model = make_extended("tiny-llama")
    with torch.no_grad():
        model.pretrained_rows[model.tokenizer.all_special_ids] = float("nan")  # a control token would show
    assert draw_start(model, "text_mean", dataset=data)[0].isfinite().all()
    rows = model.pretrained_rows.detach().nan_to_num(1e6)
    context = InitContext("ctfidf", rows, torch.Generator(), model, InitInputs(data))
    assert text_rows(context)[0].abs().max() < 1e3
    assert ctfidf(context).abs().max() < 1e3


def test_starts_without_any_text():
    data = load_dataset("toy")
    data.items.loc[:, ["title", "description", "categories"]] = ""
    for name in ("text_mean", "ctfidf", "additive"):
        with pytest.raises(GTIError, match=f"{name}: none of the texts has a token"):
            draw_start(make_extended("tiny-llama"), name, dataset=data)


def test_items_without_text_do_not_count(sids, vectors):
    data = load_dataset("toy")
    data.items.loc[:9, ["title", "description", "categories"]] = ""
    model, z = make_extended("tiny-llama", sids), vectors.double().numpy()[10:]
    E = matrices(model)[0]
    phi = phi_of(model, E, data.texts()[10:])
    S = np.concatenate([np.eye(5)[sids.codes[10:, level]] for level in (0, 1)], 1)
    np.testing.assert_allclose(
        drawn(model, "additive", dataset=data)[0],
        E.mean(0) + Ridge(alpha=1, fit_intercept=False).fit(S, phi - phi.mean(0)).coef_.T,
        atol=1e-5,
    )
    rows = drawn(model, "ridge", dataset=data, vectors=vectors)[0]
    energy = np.square(z - z.mean(0)).sum(1).mean()
    fits = [
        phi.mean(0)
        + sids.codebooks[1].double().numpy() @ Ridge(alpha=k * energy, fit_intercept=False).fit(z - z.mean(0), phi - phi.mean(0)).coef_.T
        for k in RIDGE_PENALTIES
    ]
    assert min(np.abs(rows[5:] - f).max() for f in fits) < 1e-5


def test_codes_without_geometry_start_at_the_mean(sids, given, dataset):
    "The extra level that distinguishes colliding items has no codebook vectors, but it has main effects."
    resolved = SemanticIds(torch.cat([sids.codes, torch.arange(40)[:, None] % 3], 1), [*sids.codebooks, torch.zeros(3, 0)])
    model = make_extended("tiny-llama", resolved)
    E = matrices(model)[0]
    for name, centre in (
        ("focus", E.mean(0)),
        ("wechsel", E.mean(0)),
        ("procrustes", E.mean(0)),
        ("ridge", phi_of(model, E, dataset.texts()).mean(0)),
    ):
        np.testing.assert_allclose(drawn(model, name, **given)[0][10:], np.tile(centre, (3, 1)), atol=1e-6)
    assert len(np.unique(drawn(model, "additive", **given)[0][10:].round(5), axis=0)) == 3


def test_codebooks_of_another_space(sids, given, vectors):
    "A learned quantizer has codebooks that no text vector can be compared with: residual means of the item vectors stand in."
    latent = SemanticIds(sids.codes, [torch.randn(5, 3), torch.randn(5, 3)])
    with_vectors = make_extended("tiny-llama", latent)
    left, books = vectors.double(), []
    for codes in sids.codes.T:
        books.append(torch.stack([left[codes == k].mean(0) for k in range(5)]))
        left = left - books[-1][codes]
    model = make_extended("tiny-llama", SemanticIds(sids.codes, books))
    for name in ("focus", "wechsel", "ridge", "procrustes"):
        assert torch.allclose(draw_start(with_vectors, name, **given)[0], draw_start(model, name, **given)[0], atol=1e-5), name
    with pytest.raises(GTIError, match="word vectors have 6 dimensions, the codes' 3"):
        draw_start(with_vectors, "focus", words=given["words"])


def test_the_error_names_a_missing_input(sids, dataset, vectors, words):
    model = make_extended("tiny-llama", sids)
    for name, given, argument in (
        ("text_mean", {}, "dataset"),
        ("ctfidf", {}, "dataset"),
        ("additive", {}, "dataset"),
        ("ridge", dict(dataset=dataset), "vectors"),
        ("ridge", dict(vectors=vectors), "dataset"),
        ("procrustes", dict(dataset=dataset), "vectors"),
        ("from_checkpoint", {}, "checkpoint"),
    ):
        with pytest.raises(GTIError, match=f"initializer '{name}': needs .*; pass {argument}="):
            draw_start(model, name, **given)
    with pytest.raises(GTIError, match="codebooks of these semantic IDs have none; pass vectors="):
        draw_start(make_extended("tiny-llama"), "focus", words=words)
    for bad, message in (
        (vectors[:9], "got shape \\(9, 6\\), expected \\[40, d_text\\], one row per item"),
        (vectors[0], "expected \\[40, d_text\\]"),
        (vectors / 0, "rows hold NaN"),
    ):
        with pytest.raises(GTIError, match=message):
            draw_start(model, "ridge", dataset=dataset, vectors=bad)
    with pytest.raises(GTIError, match="token ids from 250 to 9999"):
        draw_start(model, "focus", words=WordVectors(torch.tensor([250, 9999]), words.vectors[:2]))
    with pytest.raises(GTIError, match="expected \\[n\\] and \\[n, d_text\\]"):
        WordVectors(words.ids, words.vectors[:3])


def test_a_refused_start_changes_nothing(dataset):
    model = make_extended("tiny-llama")
    initialize(model, "normal")
    before = model.new_rows.detach().clone()
    for name, data in (("means", dataset), ("text_mean", None)):
        with pytest.raises(GTIError):
            initialize(model, name, dataset=data)
    small = load_dataset("toy")
    small.items = small.items[:10]
    with pytest.raises(GTIError, match="has 10 items, the semantic IDs have 40"):
        initialize(model, "text_mean", dataset=small)
    assert torch.equal(model.new_rows, before)


def test_whole_words():
    _, tokenizer = load_base("tiny-llama")
    words = whole_words(tokenizer)
    assert all(tokenizer.decode([i]) == f" {word}" and word.isalpha() and len(word) > 1 for word, i in words.items()) and list(
        words.values()
    ) == sorted(words.values())
    assert list(whole_words(tokenizer, 3)) == list(words)[:3]
    assert whole_words(ExtendedModel.extend(*load_base("tiny-llama"), {"<w_0>": "x"}).tokenizer) == words
    with pytest.raises(GTIError, match="limit: got 0"):
        whole_words(tokenizer, 0)


def test_vocabulary_words_and_descriptions_are_encoded_when_not_given(dataset):
    "With the real text encoder: described tokens need nothing else."
    model = ExtendedModel.extend(*load_base("tiny-llama-untied"), {"<tool_0>": "adds numbers", "<tool_1>": "finds a film", "<tool_2>": ""})
    for name in INFORMED:
        assert all(rows.isfinite().all() and len(rows.unique(dim=0)) == 3 for rows in draw_start(model, name)), name


# %% report


@pytest.mark.parametrize("base", BASES + BIASED)
def test_safety_figures_against_the_full_softmax_of_a_plain_model(base, sids):
    model = make_extended(base, sids)
    for p in model.new_parameters():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    plain, wanted = (
        model.model if base.endswith("biased") else model.merge(),
        [],
    )  # tiny models have no bias that a configuration could ask for
    for prompt in PROMPTS:
        p = plain(torch.tensor([model.tokenizer.encode(prompt, add_special_tokens=False)])).logits[0].double().softmax(-1)
        p_pre = p[:, : model.n_pretrained] / p[:, : model.n_pretrained].sum(1, keepdim=True)
        wanted.append(torch.stack([p[:, model.n_pretrained :].sum(1), (p_pre * (p_pre / p[:, : model.n_pretrained]).log()).sum(1)]))
    for found, right in zip(new_token_mass(model, PROMPTS), torch.cat(wanted, 1), strict=True):
        assert torch.allclose(found.double(), right.detach(), rtol=1e-4, atol=1e-6)


def test_report_against_plain_formulas(sids, tmp_path):
    model = make_extended("tiny-llama-untied", sids)
    for p, draw in zip(model.new_parameters(), (3, 4), strict=True):
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(draw))

    def as_it_is(context):
        return (model.new_rows if context.matrix == "embedding" else model.new_head_rows).detach().clone()

    report = initialize(model, as_it_is)
    for prefix, new, pretrained in (
        ("", model.new_rows, model.pretrained_rows),
        ("head_", model.new_head_rows, model.pretrained_head_rows),
    ):
        new, pretrained = new.detach().double().numpy(), pretrained.detach().double().numpy()
        s, centred = np.linalg.svd(new)[1], np.linalg.svd(new - new.mean(0))[1]
        wanted = dict(
            norm_new=np.median(np.linalg.norm(new, axis=1)),
            norm_pretrained=np.median(np.linalg.norm(pretrained, axis=1)),
            spread_ratio=spread(new) / spread(pretrained),
            effective_rank=rank(s),
            effective_rank_centred=rank(centred[centred > 1e-9]),
        )
        assert {k: getattr(report, prefix + k) for k in wanted} == pytest.approx(wanted, rel=1e-4)
    written = json.loads(write_json(tmp_path / "report.json", report).read_text())
    assert written["safe"] is True and written["name"] == "as_it_is"


def test_an_unsafe_start_warns():
    model = make_extended("tiny-llama")
    loud = torch.eye(14, 32) * 40

    def loud_start(context):
        return loud

    with pytest.warns(UserWarning, match="'loud_start': new tokens take .* of the probability"):
        assert not initialize(model, loud_start).safe
    with warnings.catch_warnings(action="error"):
        assert initialize(model, "mean").safe


@pytest.mark.parametrize("base", BIASED)
def test_biased_head_is_bounded_at_the_mean(base):
    model = make_extended(base)
    assert initialize(model, "mean").kl_max <= math.log1p(model.n_new / model.n_pretrained)
    assert model.head.new_bias.tolist() == pytest.approx([model.head.pretrained_bias.mean().item()] * model.n_new, abs=1e-6)
