"What a start knows before training, compared with direct computation."

import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.figures.initializers import initializer_figure
from gti_nb.initializers.prior import last_states, text_prompts
from gti_nb.model.extended import ExtendedModel
from gti_nb.probe import answers, starts
from gti_nb.probe.answers import chance, code_scores, probe, sid_ranks, title_hits, title_scores
from gti_nb.probe.questions import Questions, described_questions, hits, item_questions
from gti_nb.probe.starts import compare_initializers
from gti_nb.prompts import GROUNDING, Template, encode_template, fill
from gti_nb.sid.codes import SemanticIds

TITLE = GROUNDING["title_to_sid"]
BASES = ["tiny-llama", "tiny-qwen3-untied-padded", "tiny-gpt2-untied"]
SIDS = SemanticIds(torch.stack([torch.arange(40) // 8, torch.arange(40) % 8], 1))
TOOLS = {f"<tool_{i}>": f"does thing number {i}" for i in range(6)}
ASK = Template("query_to_tool", "Which tool does this?\n{text}", "{sid}")


def noisy(base, new_tokens=SIDS):
    model = ExtendedModel.extend(*load_base(base), new_tokens)
    for i, p in enumerate(model.new_parameters()):
        torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(i))
    return model


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("toy")


@pytest.fixture(scope="module")
def questions(dataset):
    return item_questions(dataset, SIDS, n=12, seed=1)


def plain_logp(plain, ids):
    "Log-probabilities of the next token at every position, by the merged model."
    with torch.no_grad():
        return plain(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_hits_are_the_mean_over_the_orders_of_ties():
    scores = torch.tensor([[2.0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 3, 3, 1, 0], [5, 4, 3, 2, 1]])
    for row in scores:
        for right in range(5):
            places = [sorted(order, key=lambda c: -row[c]).index(right) for order in permutations(range(5))]
            for k in range(1, 6):
                assert hits(row[None], torch.tensor([right]), k).item() == pytest.approx(np.mean([p < k for p in places]))
    assert hits(torch.tensor([[1.0, 1 + 1e-7]]), torch.tensor([0]), 1).item() == 0.5


@pytest.mark.parametrize("base", BASES)
def test_code_scores(base, questions):
    model = noisy(base)
    model.model.train()
    prompts = text_prompts(model, questions.texts, TITLE)
    scores = code_scores(model, last_states(model, prompts, batch_size=5))
    assert model.model.training
    model.model.eval()
    plain = model.merge()
    for i in (0, 7):
        logp = plain_logp(plain, prompts[i])[-1, model.n_pretrained : model.n_pretrained + 5]
        assert torch.allclose(scores[i].double() - scores[i].double().logsumexp(0), logp.log_softmax(0), atol=1e-4)
        ids, start = fill(encode_template(model.tokenizer, GROUNDING["title_to_sid"]), title=questions.texts[i], sid=[])
        assert prompts[i] == ids[:start] and max(prompts[i]) < model.n_pretrained
    assert torch.allclose(scores, code_scores(model, last_states(model, prompts, batch_size=1)), atol=1e-4)


@pytest.mark.parametrize("base", BASES)
def test_sid_ranks_against_every_semantic_id(base, questions):
    model = noisy(base)
    prompts, plain = text_prompts(model, questions.texts[:3], TITLE), model.merge()
    found = sid_ranks(model, prompts, questions.rows[:3], beams=40)
    for prompt, row, rank in zip(prompts, questions.rows[:3], found.tolist(), strict=True):
        scores = {}
        for ids in model.token_ids.unique(dim=0).tolist():
            logp = plain_logp(plain, prompt + ids)
            scores[tuple(ids)] = sum(logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(ids))
        right = tuple((row + model.n_pretrained).tolist())
        assert rank == 1 + sum(s > scores[right] for s in scores.values())
    narrow = sid_ranks(model, prompts, questions.rows[:3], beams=2)
    assert all(n == w or n == float("inf") for n, w in zip(narrow.tolist(), found.tolist(), strict=True))


@pytest.mark.parametrize("base", BASES)
def test_title_scores_against_one_pass_per_pair(base, questions):
    model = noisy(base)
    scores = title_scores(model, questions.rows[:3], questions.titles[:5], batch_size=2)
    prompt, plain = encode_template(model.tokenizer, GROUNDING["sid_to_title"]), model.merge()
    for i in range(3):
        for j in range(5):
            ids, start = fill(prompt, title=questions.titles[j], sid=(model.n_pretrained + questions.rows[i]).tolist())
            logp = plain_logp(plain, ids)
            assert scores[i, j].item() == pytest.approx(sum(logp[at - 1, ids[at]].item() for at in range(start, len(ids))), abs=1e-3)
    one = title_scores(model, questions.rows[:1], questions.titles[:1])
    assert one.item() == pytest.approx(scores[0, 0].item(), abs=1e-3)


def test_long_texts_and_titles_are_cut(questions):
    model = noisy("tiny-llama")
    assert len(text_prompts(model, ["x " * 100_000], TITLE)[0]) < 1000
    assert title_scores(model, questions.rows[:1], ["x " * 100_000]).isfinite().all()


@pytest.mark.parametrize("base", BASES)
def test_rows_that_know_the_answer_are_found_out(base):
    "With head rows equal to the states that ask for them, the probe gives 1; with these rows shifted by one, it gives 0."
    model = noisy(base, TOOLS)
    questions = described_questions(model, [(f"please do number {i}", f"<tool_{i}>") for i in range(6)])
    states = last_states(model, text_prompts(model, questions.texts, ASK))
    head = model.head.rows.new
    head.data = torch.linalg.pinv(states).T
    assert probe(model, questions, ASK, tell=None, ks=(1, 2))["code@1"] == 1
    head.data = head.data.roll(1, 0)
    assert probe(model, questions, ASK, tell=None, ks=(1,))["code@1"] == 0


def test_title_hits_find_what_the_rows_say(monkeypatch):
    "Scores are replaced by known ones, to check the groups, the lift and the last group."
    n, asked = 25, []
    questions = Questions([f"t{i}" for i in range(n)], torch.arange(n)[:, None], [f"title {i}" for i in range(n)])
    prior = torch.arange(n).double() * 10  # later titles are likelier whatever the semantic ID

    def planted(extended, rows, titles, template):
        asked.append(rows[:, 0].tolist())
        columns = torch.tensor([int(t.split()[1]) for t in titles])
        return prior[columns][None] + (rows == columns[None]).double()

    monkeypatch.setattr(answers, "title_scores", planted)
    plain, lift, guess = title_hits(None, questions, among=20)
    assert asked == [list(range(20)), list(range(5, 25))] and guess == pytest.approx(1 / 20)
    assert lift.tolist() == [1] * n and plain.tolist() == [float(i in (19, 24)) for i in range(n)]


def test_the_mean_start_is_chance(dataset, questions):
    model = ExtendedModel.extend(*load_base("tiny-llama"), SIDS)
    found, guess = probe(model, questions, ks=(1, 3), among=6), chance(model, questions, ks=(1, 3), among=6)
    assert guess == pytest.approx(
        {"code@1": 1 / 5, "code@3": 3 / 5, "sid@1": 1 / 40, "sid@3": 3 / 40, "title@1": 1 / 6, "title_lift@1": 1 / 6}
    )
    for name in ("code@1", "code@3", "title_lift@1", "title@1"):
        assert found[name] == pytest.approx(guess[name]), name


def test_questions(dataset):
    data = load_dataset("toy")
    data.items.loc[:3, "title"] = ""
    data.items.loc[5, "title"] = data.items.title[9]
    drawn = item_questions(data, SIDS, n=100)
    assert len(drawn.texts) == len(set(drawn.texts)) == 40 - 4 - 1 and "" not in drawn.texts
    items = [data.items.title.tolist().index(t) for t in drawn.texts]
    assert torch.equal(drawn.rows, SIDS.token_index[items])
    assert (
        item_questions(data, SIDS, 8, seed=3).texts
        == item_questions(data, SIDS, 8, seed=3).texts
        != item_questions(data, SIDS, 8, seed=4).texts
    )
    data.items.loc[:, "title"] = ""
    with pytest.raises(GTIError, match="none of its items has a title"):
        item_questions(data, SIDS)
    with pytest.raises(GTIError, match="made for 4 items, the data set has 40"):
        item_questions(dataset, SemanticIds(SIDS.codes[:4]))
    model = ExtendedModel.extend(*load_base("tiny-llama"), TOOLS | {"<none>": ""})
    with pytest.raises(GTIError, match="the answer '<tool_9>' is not one of the 7 new tokens"):
        described_questions(model, [("x", "<tool_9>")])
    silent = described_questions(model, [("nothing", "<none>")])
    assert silent.titles == [""] and "title@1" not in chance(model, silent)
    with pytest.raises(GTIError, match="none of the answers has a title"):
        probe(model, silent, ASK)
    with pytest.raises(GTIError, match="got 1 texts, 2 answers"):
        Questions(["x"], torch.zeros(2, 1).long(), ["y"])


def test_comparing_leaves_the_model_alone(dataset, questions, monkeypatch):
    model = noisy("tiny-llama-untied")
    before = [p.detach().clone() for p in model.new_parameters()]
    with warnings.catch_warnings(action="error"):
        table = compare_initializers(
            model, ["mean", "normal", "text_mean+centred_scale"], questions, dataset=dataset, ks=(1, 4), among=6, progress=False
        )

    def same():
        return all(torch.equal(p, q) for p, q in zip(model.new_parameters(), before, strict=True))

    assert same() and list(table.index) == ["mean", "normal", "text_mean+centred_scale", "chance"]
    assert {
        "p_new",
        "kl",
        "safe",
        "spread_ratio",
        "effective_rank",
        "code@1",
        "code@4",
        "sid@1",
        "sid@4",
        "title@1",
        "title_lift@1",
    } == set(table)
    assert table.loc["mean", "code@1"] == pytest.approx(table.loc["chance", "code@1"]) and np.isnan(table.loc["chance", "p_new"])
    again = compare_initializers(model, ["text_mean+centred_scale"], questions, dataset=dataset, ks=(1, 4), among=6, progress=False)
    pd.testing.assert_series_equal(table.loc["text_mean+centred_scale"], again.loc["text_mean+centred_scale"], check_dtype=False)
    for names, given, message in (
        (["mean", "ridge"], dict(dataset=dataset), "pass vectors="),
        (["mean", "nearly"], {}, "initializer: got 'nearly'"),
    ):
        with pytest.raises(GTIError, match=message):
            compare_initializers(model, names, questions, progress=False, **given)

    def broken(*args):
        raise RuntimeError("stopped in the middle")

    monkeypatch.setattr(starts, "probe", broken)
    with pytest.raises(RuntimeError):
        compare_initializers(model, ["normal"], questions, dataset=dataset, progress=False)
    assert same()


def test_tools_compared_and_drawn():
    model = ExtendedModel.extend(*load_base("tiny-llama"), TOOLS)
    questions = described_questions(model, [(f"please do number {i % 6}", f"<tool_{i % 6}>") for i in range(9)])
    table = compare_initializers(model, ["mean", "text_mean"], questions, ask=ASK, ks=(1, 3), among=4, progress=False)
    assert set(c.split("@")[0] for c in table if "@" in c) == {"code", "title", "title_lift"} and table.loc["chance", "code@3"] == 0.5
    fig = initializer_figure(table, k=3)
    assert [list(bar.y) for bar in fig.data] == [["text_mean", "mean"]] * 3 and list(fig.data[0].x) == table["code@3"][
        ["text_mean", "mean"]
    ].tolist()
    with pytest.raises(GTIError, match="safe"):
        initializer_figure(table.drop(columns="safe"))
