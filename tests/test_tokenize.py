"The folder of tokens: reused, never overwritten, never half written."

import dataclasses
import inspect
import json

import numpy as np
import pytest
import torch

from gti_nb import tokenize as module
from gti_nb.core import GTIError
from gti_nb.data.dataset import Loading, load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.data.toy import toy_tables
from gti_nb.runs.parameters import check_parameters, parse_value, pipeline_parameters, pipeline_path
from gti_nb.sid.codes import SemanticIds
from gti_nb.sid.imported import random_sids
from gti_nb.sid.quantizers import QUANTIZERS, compare_quantizers, plan_comparison, rank_quantizers
from gti_nb.sid.rqvae import RQVAE
from gti_nb.tokenize import TokenizeConfig, load_tokens, tokenize

SETTINGS = dict(levels=2, codes=8, progress=False)


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    "Stands in for the text encoder and counts its calls; what it returns depends on the texts only."
    calls = []

    def encode(texts, **kwargs):
        calls.append(len(texts))
        rows = [np.random.default_rng(list(t.encode())).normal(size=16) for t in texts]
        return torch.nn.functional.normalize(torch.tensor(np.stack(rows), dtype=torch.float32), dim=1)

    monkeypatch.setattr(module, "encode_text", encode)
    return calls


def test_second_call_reuses_and_says_so(tmp_path, encoder, capsys):
    folder = tokenize("toy", out_dir=tmp_path / "t", **SETTINGS).folder
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    tokenize("toy", out_dir=tmp_path / "t", **{**SETTINGS, "progress": True})
    assert "reusing" in capsys.readouterr().out
    assert len(encoder) == 1 and before == {f: f.stat().st_mtime_ns for f in folder.rglob("*")}


@pytest.mark.parametrize(
    "change",
    [
        dict(codes=6),
        dict(levels=3),
        dict(seed=1),
        dict(collisions="none"),
        dict(encoder="another"),
        dict(template="title"),
        dict(precision="bf16"),
        dict(quantizer="random"),
        dict(quantizer_options={"iterations": 3}),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, change):
    tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    with pytest.raises(GTIError, match=f"{next(iter(change))}: .*( now|allowed)"):
        tokenize("toy", out_dir=tmp_path / "t", **{**SETTINGS, **change})


def test_a_changed_local_encoder_is_another_key(tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "weights").write_text("one")
    tokenize("toy", encoder=tmp_path / "encoder", out_dir=tmp_path / "t", **SETTINGS)
    (tmp_path / "encoder" / "weights").write_text("two")
    with pytest.raises(GTIError, match="the content of the encoder or of a file has changed"):
        tokenize("toy", encoder=tmp_path / "encoder", out_dir=tmp_path / "t", **SETTINGS)


def test_same_inputs_same_codes_in_two_folders(tmp_path):
    one, other = (tokenize("toy", out_dir=tmp_path / n, **SETTINGS) for n in "ab")
    assert one.sids.content_hash == other.sids.content_hash and torch.equal(one.vectors, other.vectors)


def test_report_says_how_it_came_to_be(tmp_path):
    tokens = tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    report, vectors, sids = json.loads((tokens.folder / "report.json").read_text()), tokens.vectors, tokens.sids
    assert report["sids"]["items"] == tokens.dataset.n_items == len(vectors) == sids.n_items
    before = SemanticIds.load(tmp_path / "t" / "quantized")
    assert (
        before.policy == "none"
        and torch.equal(before.codes, sids.codes[:, :2])
        and report["quantizer"]["distinct"] == before.summary()["distinct"] < 40
    )
    assert report["sids"]["policy"] == "extra_level" and report["sids"]["collision_excess"] == 0
    assert report["quantizer"]["residual_energy"][-1] == pytest.approx(sids.residual_energy(vectors)[1])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(collisions="extra-level"), "did you mean 'extra_level'"),
        (dict(codes=64), "got 64 for 40 items"),
        (dict(levels=0), "levels: got 0"),
        (dict(quantizer="rqkmean"), "did you mean 'rqkmeans'"),
        (dict(quantizer_options={"iteration": 2}), "did you mean 'iterations'"),
        (dict(quantizer_options=[2]), r"quantizer_options: got \[2\], expected a mapping"),
        (dict(quantizer="rqvae", quantizer_options={"preset": "big"}), "preset: got 'big'"),
        (dict(quantizer="imported"), "set index to the path"),
        (dict(template="titles"), "template"),
        (dict(quantizer="random", collisions="hungarian"), "have no vectors"),
        (dict(precision="fp16"), "precision: got 'fp16'"),
        (dict(device="tpu"), "device: got 'tpu'"),
    ],
)
def test_wrong_settings_are_refused_before_encoding(tmp_path, encoder, wrong, message):
    with pytest.raises(GTIError, match=message):
        tokenize("toy", out_dir=tmp_path / "t", **{**SETTINGS, **wrong})
    assert encoder == [] and not (tmp_path / "t").exists()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise GTIError("the disk is full")

    monkeypatch.setattr(module.SemanticIds, "save", fail)
    with pytest.raises(GTIError, match="disk is full"):
        tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.tex").write_text("important")
    with pytest.raises(GTIError, match="not empty"):
        tokenize("toy", out_dir=tmp_path / "t", **SETTINGS)
    assert [f.name for f in (tmp_path / "t").iterdir()] == ["thesis.tex"]


def test_mixed_or_damaged_folders_are_refused(tmp_path):
    a, b = (tokenize("toy", out_dir=tmp_path / n, **{**SETTINGS, "seed": s}).folder for s, n in enumerate("ab"))
    (a / "sids" / "sids.json").write_bytes((b / "sids" / "sids.json").read_bytes())
    (a / "sids" / "sids.safetensors").write_bytes((b / "sids" / "sids.safetensors").read_bytes())
    with pytest.raises(GTIError, match="come from different runs"):
        load_tokens(a)
    (b / "vectors.safetensors").write_bytes((b / "vectors.safetensors").read_bytes()[:-1])
    with pytest.raises(GTIError, match="damaged"):
        load_tokens(b)


NETWORK = dict(hidden=[16], latent=4, epochs=4)  # a network that trains in an instant
OPTIONS = {"rqvae": NETWORK}


@pytest.fixture
def index(tmp_path):
    "An index file with semantic IDs of two codes for the toy films."
    sids, items = random_sids(40, 2, 8, seed=3), load_dataset("toy").items.item_id
    path = tmp_path / "toy.index.json"
    path.write_text(json.dumps({item: sids.tokens(i) for i, item in enumerate(items)}))
    return path


@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS))
def test_every_quantizer_makes_a_folder_that_loads_and_is_reused(tmp_path, encoder, index, quantizer):
    options = {"index": str(index)} if quantizer == "imported" else OPTIONS.get(quantizer, {})
    settings = {**SETTINGS, "quantizer": quantizer, "quantizer_options": options}
    tokens = tokenize("toy", out_dir=tmp_path / "t", **settings)
    folder, vectors, sids = tokens.folder, tokens.vectors, tokens.sids
    report = json.loads((folder / "report.json").read_text())
    assert sids.n_items == len(vectors) == 40 and sids.summary()["distinct"] == 40 and sids.levels in (2, 3)
    assert report["parameters"]["quantizer"] == quantizer and report["parameters"]["quantizer_options"] == options
    assert report["quantizer"]["levels"] == 2 and report["card"]["distinct"] == 40 and len(report["levels"]) == sids.levels
    assert 0 <= report["card"]["neighbours"] <= 1 and report["card"]["purity_a"] is not None
    tokenize("toy", out_dir=folder, **settings)
    assert len(encoder) == 1 and [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_imported_semantic_ids_are_those_of_the_file_and_a_changed_file_is_another_key(tmp_path, index):
    settings = {**SETTINGS, "quantizer": "imported", "quantizer_options": {"index": str(index)}, "collisions": "none"}
    sids = tokenize("toy", out_dir=tmp_path / "t", **settings).sids
    assert (sids.codes == random_sids(40, 2, 8, seed=3).codes).all()
    again = tokenize("toy", out_dir=tmp_path / "t", **{**settings, "levels": 4, "codes": 99, "seed": 7})  # the file has its own
    assert again.sids.content_hash == sids.content_hash
    imported = json.loads(index.read_text())
    first, second, *_ = imported
    imported[first], imported[second] = imported[second], imported[first]
    index.write_text(json.dumps(imported))
    with pytest.raises(GTIError, match="content of the encoder or of a file has changed"):
        tokenize("toy", out_dir=tmp_path / "t", **settings)


def test_an_interrupted_fit_resumes_and_ends_the_same(tmp_path, monkeypatch):
    settings = {**SETTINGS, "quantizer": "rqvae", "quantizer_options": NETWORK}
    whole = tokenize("toy", out_dir=tmp_path / "whole", **settings).sids
    fit, seen = RQVAE.fit, []

    def stop(row):
        seen.append(row["epoch"])
        if row["epoch"] == 2 and len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(
        RQVAE,
        "fit",
        lambda self, vectors, out_dir=None, progress=True: fit(self, vectors, out_dir, progress, on_epoch=stop, checkpoint_seconds=0),
    )
    with pytest.raises(KeyboardInterrupt):
        tokenize("toy", out_dir=tmp_path / "cut", **settings)
    assert not (tmp_path / "cut").exists()
    resumed = tokenize("toy", out_dir=tmp_path / "cut", **settings)
    vectors, sids = resumed.vectors, resumed.sids
    assert seen == [1, 2, 3, 4] and sids.content_hash == whole.content_hash
    assert sorted(f.name for f in tmp_path.iterdir()) == ["cut", "whole"]
    assert (RQVAE.load(tmp_path / "cut" / "quantizer").assign(vectors) == sids.codes[:, :2]).all()


@pytest.mark.parametrize("policy", ["none", "extra_level", "sinkhorn", "hungarian"])
def test_every_policy_is_applied_in_the_space_of_the_codes(tmp_path, policy):
    settings = {**SETTINGS, "quantizer": "rqvae", "quantizer_options": NETWORK, "collisions": policy}
    tokens = tokenize("toy", out_dir=tmp_path / "t", **settings)
    vectors, sids = tokens.vectors, tokens.sids
    latents = RQVAE.load(tmp_path / "t" / "quantizer").latent(vectors)
    assert sids.policy == policy and (sids.codes[:, 0] == sids.assign(latents, levels=1)[:, 0]).all()


def test_queries_have_items_too(tmp_path):
    queries = load_queries("toy")
    queries.save(tmp_path / "saved")
    for data in (queries, tmp_path / "saved"):
        tokens = tokenize(data, out_dir=tmp_path / "t", levels=2, codes=4, progress=False)
        dataset, vectors, sids = tokens.dataset, tokens.vectors, tokens.sids
        assert (
            type(dataset) is type(queries)
            and dataset.content_hash == queries.content_hash
            and len(vectors) == sids.n_items == queries.n_items
        )


def test_the_template_decides_what_is_encoded(tmp_path, monkeypatch):
    heard, encode = [], module.encode_text

    def listen(texts, **options):
        heard.append((texts, options))
        return encode(texts)

    monkeypatch.setattr(module, "encode_text", listen)
    tokenize("toy", out_dir=tmp_path / "t", template="A film called {title}", precision="fp32", device="cpu", **SETTINGS)
    ((texts, options),) = heard
    assert texts == [f"A film called {t}" for t in load_dataset("toy").items.title]
    assert (options["precision"], options["device"], options["model"]) == ("fp32", "cpu", "all-minilm-l6-v2")


def test_a_folder_of_the_first_version_is_read_but_not_taken_for_the_same(tmp_path):
    folder = tokenize("toy", out_dir=tmp_path / "t", **SETTINGS).folder
    report = json.loads((folder / "report.json").read_text())
    old = {
        **report,
        "schema": 1,
        "key": "0" * 16,
        "parameters": {
            k: v for k, v in report["parameters"].items() if k not in ("quantizer", "quantizer_options", "template", "precision")
        },
    }
    (folder / "report.json").write_text(json.dumps(old))
    assert load_tokens(folder).sids.n_items == 40
    with pytest.raises(GTIError, match="another version of gti-nb .schema 1, this one writes 2."):
        tokenize("toy", out_dir=folder, **SETTINGS)
    (folder / "report.json").write_text(json.dumps({**old, "schema": 3}))
    with pytest.raises(GTIError, match="schema 3, this version reads 1 and 2"):
        load_tokens(folder)


def test_comparison_against_single_fits():
    heap = torch.arange(120) % 6
    vectors = torch.eye(6, 12)[heap] + 0.2 * torch.randn(120, 12, generator=torch.Generator().manual_seed(1))
    choices = ["random", "rqkmeans", {"quantizer": "rqvae", **NETWORK}]
    frame, first = compare_quantizers(
        vectors, plan_comparison(choices, levels=2, codes=6, seeds=[0, 5]), categories=[f"heap {h}" for h in heap.tolist()]
    )
    assert len(frame) == 6 and frame.groupby("quantizer").seed.apply(list).map(tuple).unique().tolist() == [(0, 5)]
    again, _ = compare_quantizers(vectors, plan_comparison(choices[::-1], levels=2, codes=6, seeds=[5, 0]))
    order = ["quantizer", "seed"]
    assert frame.sort_values(order).neighbours.tolist() == again.sort_values(order).neighbours.tolist()
    ranked = rank_quantizers(frame)
    assert ranked.index[-1] == "random" and ranked.neighbours.is_monotonic_decreasing and ranked["rank"].tolist() == [1, 2, 3]
    part = frame[frame.quantizer == "rqkmeans"]
    assert ranked.loc["rqkmeans", "neighbours_range"] == pytest.approx(part.neighbours.max() - part.neighbours.min())
    assert np.isnan(ranked.loc["random", "reconstruction"]) and 0 < ranked.loc["rqkmeans", "reconstruction"] < 1
    network = frame[frame.quantizer.str.startswith("rqvae")].iloc[0]
    assert network.reconstruction == network.reconstruction_energy != network.residual_energy


def test_equal_neighbours_are_ranked_by_collisions():
    import pandas as pd

    rows = [dict(quantizer=q, seed=0, neighbours=n, collision_share=c) for q, n, c in [("a", 0.5, 0.3), ("b", 0.5, 0.1), ("c", 0.6, 0.9)]]
    assert rank_quantizers(pd.DataFrame(rows)).index.tolist() == ["c", "b", "a"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(choices=["rqkmeans", "randon"]), "did you mean 'random'"),
        (dict(choices=[{"preset": "small"}]), "expected a name such as"),
        (dict(choices=[3]), "expected a name such as"),
        (dict(choices=["random"], seeds=[]), "at least one of each"),
        (dict(choices=["rqkmeans", "rqkmeans"]), "more than once"),
        (dict(choices=["rqkmeans"], codes=9, item_ids=list("abc")), "got 9 for 3 items"),
    ],
)
def test_a_wrong_comparison_is_refused_before_the_first_fit(wrong, message):
    with pytest.raises(GTIError, match=message):
        plan_comparison(**wrong)


def test_codes_from_a_file_are_taken_once_whatever_the_seeds(index):
    items = load_dataset("toy").items.item_id.tolist()
    plan = plan_comparison(["random", {"quantizer": "imported", "index": str(index)}], 2, 8, [1, 2, 3], item_ids=items)
    assert [(label.split()[0], seed) for label, seed, _ in plan] == [("random", 1), ("random", 2), ("random", 3), ("imported", 1)]


def test_every_choice_of_load_dataset_is_a_setting_and_a_parameter():
    choices = {name: p.default for name, p in inspect.signature(load_dataset).parameters.items() if name != "name_or_path"}
    settings = {f.name: getattr(Loading(), f.name) for f in dataclasses.fields(Loading)}
    assert settings == choices | {"columns": {}} == {name: getattr(TokenizeConfig(), name) for name in choices}
    spec = pipeline_parameters(pipeline_path("tokenize"))
    assert {name: spec[name].default for name in choices} == settings
    assert set(spec) == {"data", "out_dir"} | {f.name for f in dataclasses.fields(TokenizeConfig)}


CHOICES = [
    dict(k_core=2),
    dict(k_core=0),
    dict(min_rating=3.0, k_core=0),
    dict(repeats="all"),
    dict(ties="hash"),
    dict(max_events=7, k_core=3),
    dict(columns={"title": "categories", "timestamp": None}),
]


@pytest.mark.filterwarnings("ignore:.*cleaning leaves")
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_choice_gives_the_data_set_that_load_dataset_gives(tmp_path, choice):
    items, events = toy_tables()
    (tmp_path / "d").mkdir()
    items.to_csv(tmp_path / "d" / "items.csv", index=False)
    events.assign(rating=[1, 5, 4, 3, 5] * 60).to_csv(tmp_path / "d" / "interactions.csv", index=False)
    own = load_dataset(tmp_path / "d", **choice)
    tokens = tokenize(tmp_path / "d", tmp_path / "t", **SETTINGS | {"codes": 4}, **choice)
    assert tokens.dataset.content_hash == own.content_hash and tokens.dataset.policies == own.policies
    assert json.loads((tmp_path / "t" / "report.json").read_text())["dataset"]["policies"] == own.policies


def test_two_files_and_a_delimiter(tmp_path):
    items, events = toy_tables()
    items.to_csv(tmp_path / "a.csv", index=False, sep=";")
    events.to_csv(tmp_path / "b.csv", index=False, sep=";")
    tokens = tokenize(out_dir=tmp_path / "t", items=tmp_path / "a.csv", interactions=str(tmp_path / "b.csv"), delimiter=";", **SETTINGS)
    assert tokens.dataset.content_hash == load_dataset("toy").content_hash


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(k_core=-1), "k_core: got -1"),
        (dict(k_core="5"), "k_core: got '5', expected a whole number"),
        (dict(min_rating="4"), "min_rating: got '4'"),
        (dict(min_rating=float("nan")), "min_rating: got nan"),
        (dict(repeats="last"), "repeats: got 'last', allowed: 'first', 'all'"),
        (dict(ties="id"), "ties: got 'id'"),
        (dict(max_events=2), "max_events: got 2"),
        (dict(columns={"titel": "name"}), "columns: name: got 'titel'.*did you mean 'title'"),
        (dict(columns={"title": 3}), "columns: title: got 3, expected the name of a column"),
        (dict(columns=["title"]), "columns: got"),
        (dict(delimiter=";;"), "delimiter: got ';;', allowed: one character"),
        (dict(items="items.csv"), "interactions: is missing"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_read(tmp_path, encoder, wrong, message):
    spec = pipeline_parameters(pipeline_path("tokenize"))
    for call in (
        lambda: TokenizeConfig(**wrong),
        lambda: tokenize(tmp_path / "nowhere", tmp_path / "t", **SETTINGS, **wrong),
        lambda: check_parameters("tokenize", spec, {"data": "nowhere"} | wrong),
    ):
        with pytest.raises(
            GTIError, match=message if call.__code__.co_names[0] != "check_parameters" else f"tokenize: .*({next(iter(wrong))}|is missing)"
        ):
            call()
    assert not encoder and not list(tmp_path.iterdir())


def test_choices_on_the_command_line():
    spec = pipeline_parameters(pipeline_path("tokenize"))
    given = {"k_core": "0", "min_rating": "4", "max_events": "9", "repeats": "all", "columns.title": "name", "columns.brand": "null"}
    values = check_parameters("tokenize", spec, {name: parse_value(spec, name, text) for name, text in given.items()})
    assert {name: values[name] for name in ("k_core", "min_rating", "max_events", "repeats")} == dict(
        k_core=0, min_rating=4.0, max_events=9, repeats="all"
    )
    assert values["columns"] == {"title": "name", "brand": None}


def test_what_is_loaded_already_or_has_no_histories_takes_no_choice(tmp_path):
    with pytest.raises(GTIError, match="k_core, repeats: this data set is loaded already; pass them to load_dataset"):
        tokenize(load_dataset("toy"), tmp_path / "t", k_core=3, repeats="all", **SETTINGS)
    load_queries("toy").save(tmp_path / "q")
    with pytest.raises(GTIError, match="k_core: for histories, but these are queries"):
        tokenize(tmp_path / "q", tmp_path / "t", k_core=3, **SETTINGS)
    load_dataset("toy").save(tmp_path / "saved")
    with pytest.raises(GTIError, match="a saved data set has known columns"):
        tokenize(tmp_path / "saved", tmp_path / "t", columns={"title": "name"}, **SETTINGS)
    assert not (tmp_path / "t").exists()


def test_another_policy_for_the_same_data_is_named(tmp_path):
    tokenize("toy", tmp_path / "t", repeats="all", **SETTINGS)
    with pytest.raises(GTIError, match="repeats: 'all' there, None now"):
        tokenize("toy", tmp_path / "t", **SETTINGS)


@pytest.mark.parametrize("policy", ["none", "extra_level", "sinkhorn", "hungarian"])
def test_the_collision_policy_is_in_the_record_and_in_the_metrics(tmp_path, policy):
    "Fault class 20."
    tokens = tokenize("toy", tmp_path / "t", collisions=policy, **SETTINGS | {"codes": 4 if policy in ("none", "extra_level") else 8})
    report = json.loads((tokens.folder / "report.json").read_text())
    shared = 40 - len(set(map(tuple, tokens.sids.codes.tolist())))
    assert report["parameters"]["collisions"] == report["sids"]["policy"] == tokens.sids.policy == policy
    assert report["sids"]["collision_excess"] == shared / 40 and (shared > 0) == (policy == "none")
    assert report["quantizer"]["distinct"] < 40 or policy in ("sinkhorn", "hungarian")
