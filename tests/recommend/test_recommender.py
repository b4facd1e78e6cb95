"A recommender gives the lists of the evaluation, filters inside the search, explains its scores, and survives saving and new items."

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from gti_nb.arm import train_arm
from gti_nb.assets import load_base
from gti_nb.cli import main
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.evaluate.evaluation import EvaluationConfig
from gti_nb.evaluate.model import evaluate_model, query_set, user_set
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.recommend.recommender import Recommender
from gti_nb.recommend.setup import RecommenderSetup
from gti_nb.result import ArmResult
from gti_nb.settings import ArmConfig
from gti_nb.sft.config import SFTConfig
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.kmeans import RQKMeans
from gti_nb.text import encode_text
from gti_nb.tokenize import tokenize


@pytest.fixture(scope="module")
def movies():
    return load_dataset("movielens-100k")


def distinct(extended):
    "The model with rows that give every item another score."
    noise = torch.Generator().manual_seed(0)
    for p in extended.new_parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=noise)
    return extended


@pytest.fixture(scope="module")
def recommender(movies):
    codes = torch.stack([torch.arange(movies.n_items) % 40, torch.arange(movies.n_items) // 40], 1)
    extended = ExtendedModel.extend(*load_base("tiny-llama"), SemanticIds(codes, [torch.eye(40), torch.eye(40)]))
    initialize(extended, "normal_matched")
    return Recommender(distinct(extended), movies.items, RecommenderSetup(history=20, beams=20, data=movies.name))


@pytest.mark.parametrize("task", ["retrieval", "retrieval_rows"])
def test_lists_are_those_of_the_evaluation(recommender, movies, task):
    split = movies.leave_one_out(max_history=20)
    asked = user_set(recommender.extended, split, "test", 100, task)
    found, _ = evaluate_model(recommender.extended, asked, beams=20)
    ids = movies.items.item_id.to_numpy()
    histories = {str(u): ids[split.past(u, "test")].tolist() for u in asked.names}
    one = Recommender(recommender.extended, movies.items, RecommenderSetup(task=task))
    frame = one.recommend_all(histories, k=20)
    assert len(frame) == 2000
    assert (frame.item_id.to_numpy().reshape(100, 20) == ids[found.items.numpy()]).all()
    assert np.allclose(frame.score.to_numpy().reshape(100, 20), found.scores.numpy(), atol=1e-4)


def test_a_run_keeps_its_lists_and_its_model_gives_them_again(tmp_path):
    tokens = tokenize("toy", tmp_path / "tokens", levels=2, codes=8, progress=False)
    config = ArmConfig(
        base="tiny-llama", sft=SFTConfig(steps=3, batch_size=4), evaluation=EvaluationConfig(history=7, beams=12), save_model=True
    )
    result = train_arm(tokens, config, tmp_path / "arm", progress=False)
    kept = pd.read_parquet(tmp_path / "arm" / "lists.parquet")
    assert kept.equals(ArmResult.load(tmp_path / "arm").evaluation.ranked) and kept.equals(result.evaluation.ranked)
    one = Recommender.from_run(tmp_path / "arm", device="cpu")
    assert (one.setup.history, one.setup.beams, one.setup.encoder) == (7, 12, "all-minilm-l6-v2")
    ids, split = one.items.item_id.to_numpy(), tokens.dataset.split(max_history=7)
    histories = {str(u): ids[split.past(u, "test")].tolist() for u in kept.user.unique()}
    frame = one.recommend_all(histories, k=12)
    assert frame.item_id.tolist() == kept.item_id.tolist()
    assert np.allclose(frame.score, kept.score, atol=1e-4)
    assert one.add_items(pd.DataFrame({"item_id": ["new"], "title": ["The Worst Waiter in Paris"]})).semantic_id[0]


def test_filters_hold_inside_the_search(recommender, movies):
    ids = movies.items.item_id.tolist()
    history, only = ids[:5], ids[100:107]
    assert set(recommender.recommend(history, k=20, only=only).item_id) == set(only)
    assert set(recommender.recommend(history, k=20, only=only, exclude=only[:3]).item_id) == set(only[3:])
    western = recommender.recommend(history, k=20, categories=["Western"])
    of = dict(zip(ids, movies.items.categories, strict=True))
    assert len(western) == 20 and all("Western" in of[item] for item in western.item_id)
    for options in ({}, {"only": ids[50:90]}, {"categories": ["Western", "War"]}):
        found, exact = (recommender.recommend(history, k=5, exact=exact, **options) for exact in (False, True))
        assert set(found.item_id) <= set(recommender.recommend(history, k=20, exact=True, **options).item_id)
        assert exact.score.is_monotonic_decreasing


def test_a_score_is_explained_by_its_codes(recommender, movies):
    history = movies.items.title[:4].tolist()
    listed = recommender.recommend(history, k=3)
    for row in listed.itertuples():
        steps = recommender.why(history, row.item_id)
        assert steps.score.iloc[-1] == pytest.approx(row.score, abs=1e-4)
        assert steps["items"].iloc[-1] == 1 and (steps["rank"] <= steps["choices"]).all()


def test_a_saved_folder_recommends_the_same_and_opens_in_plain_transformers(recommender, tmp_path):
    again = Recommender.from_pretrained(recommender.save(tmp_path / "model"), device="cpu")
    history = recommender.items.item_id[:3].tolist()
    pd.testing.assert_frame_equal(again.recommend(history), recommender.recommend(history), atol=1e-4)
    assert again.setup == recommender.setup
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() > 0
    assert Recommender.from_run(tmp_path, device="cpu").recommend(history).equals(again.recommend(history))
    with pytest.raises(GTIError, match="save_model"):
        Recommender.from_run(tmp_path / "model")
    (tmp_path / "model" / "items.parquet").unlink()
    with pytest.raises(GTIError, match="items.parquet"):
        Recommender.from_pretrained(tmp_path / "model")


def test_new_items_are_added_by_their_text(movies, tmp_path):
    films = movies.items.head(200)
    texts = [f"{row.title}. {row.categories}" for row in films.itertuples()]
    sids = RQKMeans(2, 32).fit(encode_text(texts)).resolve("hungarian", encode_text(texts))
    extended = distinct(ExtendedModel.extend(*load_base("tiny-llama"), sids))
    one = Recommender(extended, films, RecommenderSetup(encoder="all-minilm-l6-v2", template="{title}. {categories}"))
    before = one.recommend(films.item_id[:2].tolist(), k=200)
    added = one.add_items(pd.DataFrame({"item_id": ["new"], "title": ["Toy Story 2 (1999)"], "categories": ["Animation, Comedy"]}))
    assert added.semantic_id[0].startswith(" ".join(one.sids.tokens(200)))
    after = one.recommend(films.item_id[:2].tolist(), k=201)
    assert after.item_id[after.item_id != "new"].tolist() == before.item_id.tolist()
    assert "Toy Story 2 (1999)" in one.recommend(films.item_id[:2].tolist(), only=["new"]).title.tolist()
    with pytest.raises(GTIError, match="'new' is taken"):
        one.add_items(pd.DataFrame({"item_id": ["new"], "title": ["again"]}))
    again = Recommender.from_pretrained(one.save(tmp_path / "model"), device="cpu")
    assert again.lookup.row("Toy Story 2") == 200


def test_queries_are_answered_as_in_the_evaluation():
    asked = load_queries("toy")
    n = asked.n_items
    codes = torch.stack([torch.arange(n) % 4, torch.arange(n) // 4], 1)
    sids = SemanticIds(codes, [torch.eye(4), torch.eye(int(codes[:, 1].max()) + 1)])
    extended = distinct(ExtendedModel.extend(*load_base("tiny-llama"), sids))
    questions = query_set(extended, asked, "test")
    found, _ = evaluate_model(extended, questions, beams=10)
    one = Recommender(extended, asked.items, RecommenderSetup(kind="query", task="search", beams=10))
    frame = one.search_all(asked.queries["query"].iloc[questions.names].tolist(), k=10)
    ids = asked.items.item_id.to_numpy()
    assert (frame.item_id.to_numpy().reshape(-1, 10) == ids[found.items.numpy()]).all()
    assert one.search("a quiet film", k=3).columns.tolist() == ["rank", "item_id", "title", "score"]
    with pytest.raises(GTIError, match="answer queries"):
        one.recommend([])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda r: r.recommend(["Toy Stori (1995)"]), "nearest: 'Toy Story"),
        (lambda r: r.recommend("Toy Story"), "expected a list of ids or titles"),
        (lambda r: r.recommend([], k=0), "k: got 0"),
        (lambda r: r.recommend([], only=[]), "leave no item"),
        (lambda r: r.recommend([], categories=["Westerm"]), "Western"),
        (lambda r: r.search("a film"), "trained on histories"),
        (lambda r: r.add_items(pd.DataFrame({"item_id": ["x"], "title": ["y"]})), "how its items were encoded"),
    ],
)
def test_what_cannot_be_answered_is_refused(recommender, call, message):
    with pytest.raises(GTIError, match=message):
        call(recommender)


def test_people_without_a_history_get_a_list_too(recommender):
    assert len(recommender.recommend([], k=7)) == 7
    assert recommender.recommend_all({}).empty


def test_on_the_command_line(recommender, tmp_path, capsys):
    model = str(recommender.save(tmp_path / "model"))
    ids = recommender.items.item_id.tolist()
    assert main(["recommend", model, "--history", "Toy Story", ids[7], "-k", "3"]) == 0
    shown = capsys.readouterr().out
    expected = recommender.recommend(["Toy Story", ids[7]], k=3)
    assert all(title in shown for title in expected.title)
    (tmp_path / "users.csv").write_text(f"user_id,item_id\nanna,{ids[0]}\nbert,{ids[3]}\nanna,{ids[7]}\n")
    out = tmp_path / "lists.parquet"
    assert main(["recommend", model, "--users", str(tmp_path / "users.csv"), "-k", "3", "--out", str(out)]) == 0
    made = pd.read_parquet(out)
    assert made.item_id.tolist() == recommender.recommend_all({"anna": [ids[0], ids[7]], "bert": [ids[3]]}, k=3).item_id.tolist()
    capsys.readouterr()
    for arguments, message in [
        (["--users", str(tmp_path / "users.csv"), "--out", str(out)], "exists already"),
        (["--history", "Toi Story"], "nearest: 'Toy Story"),
        (["--query", "a film"], "trained on histories"),
        (["--history", "1", "-k", "0"], "k: got 0"),
    ]:
        assert main(["recommend", model, *arguments]) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("gti: ") and message in said
