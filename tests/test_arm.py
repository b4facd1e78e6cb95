"An arm as a function: settings in every form, results saved and read, nothing trained before everything is checked."

import json
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch

from gti_nb.arm import plan_arm, train_arm
from gti_nb.core import GTIError
from gti_nb.data.queries import load_queries
from gti_nb.data.toy import toy_tables
from gti_nb.result import ArmResult
from gti_nb.runs.parameters import check_parameters, pipeline_parameters, pipeline_path
from gti_nb.runs.tables import reference_frames
from gti_nb.settings import SECTIONS, ArmConfig, arm_config, section_fields
from gti_nb.tokenize import tokenize

TINY = dict(base="tiny-llama", precision="fp32", device="cpu", sft_steps=3, sft_batch_size=4, sft_window=5, evaluation_history=4)


@pytest.fixture(scope="module")
def spec():
    return pipeline_parameters(pipeline_path("train"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return tokenize("toy", tmp_path_factory.mktemp("tokens") / "toy", levels=2, codes=8, progress=False)


def test_the_defaults_of_the_pipeline_are_those_of_the_library(spec):
    assert arm_config(**{name: p.default for name, p in spec.items()}) == arm_config() == ArmConfig(sft=arm_config().sft)


def test_every_flat_parameter_is_a_field_of_its_section(spec):
    for name in spec:
        section, _, field = name.partition("_")
        if section in SECTIONS and field:
            assert field in section_fields(section), name


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_section_can_be_set_as_an_entry(spec, section):
    defaults = {f.name: getattr(kind(), f.name) for kind in SECTIONS[section] for f in fields(kind)}
    for name in set(section_fields(section)) & set(defaults):
        values = check_parameters("train", spec, {f"{section}.{name}": defaults[name], "grounding_steps": 5} if name != "steps" else {})
        assert set(values) == set(spec)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(sft={"packing": "1024"}), "packing: got '1024'"),
        (dict(sft={"packing": True}), "packing: got True"),
        (dict(sft={"weight_decay": "1e-3"}), "write the number 1e-3 without quotes"),
        (dict(sft={"lr_scheduler_type": "cosin"}), "did you mean 'cosine'"),
        (dict(sft={"tasks": ["retreival"]}), "did you mean 'retrieval'"),
        (dict(sft={"weights": {"retrieval": "much"}}), "weights"),
        (dict(sft={"preset": "papers"}), "did you mean 'paper'"),
        (dict(sft_learning_rate="fast"), "learning_rate: got 'fast'"),
        (dict(grounding_steps=100.5), "steps: got 100.5"),
        (dict(grounding={"learning_rate": -1.0}, grounding_steps=5), "learning_rate: got -1.0"),
        (dict(grounding={"holdout": 0.9}), "holdout: got 0.9"),
        (dict(grounding={"templates": ["title_to_sids"]}), "did you mean 'title_to_sid'"),
        (dict(grounding={"full": {"step": 3}}), "did you mean 'steps'"),
        (dict(evaluation={"ks": [0]}), "ks"),
        (dict(evaluation={"measures": ["recal"]}), "did you mean 'recall'"),
        (dict(evaluation_beams=0), "beams: got 0"),
        (dict(init="ridge+scaled"), "suffix"),
        (dict(seed=-1), "seed: got -1"),
        (dict(steps=3), "parameter: got 'steps'"),
        (dict(sft_stepps=3), "did you mean 'steps'"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong, message):
    with pytest.raises(GTIError) as refused:
        arm_config(**wrong)
    assert message in str(refused.value)


def test_what_stages_share_is_set_for_the_arm():
    config = arm_config(seed=3, precision="bf16", save_steps=7, grounding_steps=5, grounding={"full": {"steps": 2, "learning_rate": 1e-4}})
    for stage in (config.grounding, config.grounding_full, config.sft):
        assert (stage.seed, stage.precision, stage.save_steps) == (3, "bf16", 7)
    assert config.grounding_full.learning_rate_new == pytest.approx(1e-3)


def test_epochs_become_steps_when_the_examples_are_known(tokens):
    plan = plan_arm(tokens, arm_config(**TINY | {"sft_steps": None}, sft={"num_train_epochs": 2}))
    assert plan.config.sft.steps == -(-2 * int(plan.examples().sum()) // 4) == len(plan.batches)


def test_what_does_not_fit_the_data_is_refused_before_training(tokens, tmp_path):
    with pytest.raises(GTIError, match="search: needs queries"):
        train_arm(tokens, arm_config(**TINY, sft_tasks=["search"]), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_saved_result_is_the_result(tokens, tmp_path):
    config = arm_config(**TINY, grounding_steps=2, grounding_batch_size=4, evaluation={"exact_users": 2}, sft={"eval_steps": 2})
    result = train_arm(tokens.folder, config, tmp_path / "arm", progress=False)
    again = ArmResult.load(tmp_path / "arm")
    assert again.config == result.config and again.metrics == result.metrics and again.facts == result.facts
    assert again.stages == result.stages and again.losses == json.loads(json.dumps(result.losses))
    assert again.validation == result.validation and len(again.validation["curve"]) == 2
    pd.testing.assert_frame_equal(again.per_user, result.per_user)
    pd.testing.assert_frame_equal(again.evaluation.per_user_sid, result.evaluation.per_user_sid)
    pd.testing.assert_frame_equal(again.grounding_quality, result.grounding_quality)
    pd.testing.assert_frame_equal(again.evaluation.agreement, result.evaluation.agreement)
    shared = ["by", "slice", "users"]
    assert again.evaluation.slices[shared].astype(str).equals(result.evaluation.slices[shared].astype(str))
    for stage, diagnosis in result.diagnostics.items():
        assert again.diagnostics[stage].numbers.keys() == diagnosis.numbers.keys()
    assert not (tmp_path / "arm" / "checkpoints").exists()


def test_a_folder_with_a_result_is_reused_or_refused(tokens, tmp_path):
    config = arm_config(**TINY)
    first = train_arm(tokens, config, tmp_path / "arm", progress=False)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "arm").rglob("*") if p.is_file()}
    assert train_arm(tokens, config, tmp_path / "arm", progress=False).losses == first.losses
    with pytest.raises(GTIError, match="holds the result of another arm"):
        train_arm(tokens, arm_config(**TINY, seed=1), tmp_path / "arm", progress=False)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "arm").rglob("*") if p.is_file()}


def test_memory_and_disk_give_the_same_arm(tokens, tmp_path):
    config = arm_config(**TINY, grounding_steps=2, grounding_batch_size=4)
    torch.set_num_threads(1)
    one, other = train_arm(tokens, config, progress=False), train_arm(tokens, config, tmp_path / "arm", progress=False)
    assert one.metrics == other.metrics and one.losses == other.losses


@pytest.mark.parametrize("version", [None, 1, 3, "2"])
def test_another_format_is_named_and_never_read_in_part(tmp_path, version):
    numbers = {"metrics": {"recall@10": 0.1}} | ({} if version is None else {"format": version})
    (tmp_path / "metrics.json").write_text(json.dumps(numbers))
    with pytest.raises(GTIError, match=f"an arm of format {version or 1!r}, this version reads 2"):
        ArmResult.load(tmp_path)


def test_queries_make_a_search_arm(tmp_path):
    wishes = tokenize(load_queries("toy"), tmp_path / "tokens", levels=2, codes=8, progress=False)
    result = train_arm(wishes, arm_config(**TINY, evaluation_users=5), progress=False)
    assert result.facts["kind"] == "query" and result.evaluation.per_user_sid is None and result.metrics["users"] == 5


def test_a_saved_model_needs_a_run_folder(tokens):
    with pytest.raises(GTIError, match="save_model: the model is saved in the run folder"):
        train_arm(tokens, arm_config(**TINY, save_model=True))


def published_folder(folder, several: bool):
    "The toy data with a split of their own: the last three items of a user are the test, as one question or as three."
    items, events = toy_tables()
    folder.mkdir()
    items.to_csv(folder / "items.csv", index=False)
    taken = {user: own.item_id.tolist() for user, own in events.groupby("user_id")}
    parts = {"train": slice(0, 6), "valid": slice(6, 7), "test": slice(7, 10)}
    for part, place in parts.items():
        (folder / f"{part}.txt").write_text("".join(f"{user} {' '.join(own[place])}\n" for user, own in taken.items()))
    if not several:
        rows = [(user, str(own[:k]), own[k]) for user, own in taken.items() for k in (7, 8, 9)] + [("u00", "['f00']", "not a film")]
        pd.DataFrame(rows, columns=["user_id", "history_item_id", "item_id"]).to_csv(folder / "test.csv", index=False)
        (folder / "test.txt").unlink()
    return folder


@pytest.mark.parametrize("several", [True, False])
def test_an_arm_runs_the_test_that_was_published(tmp_path, several):
    wanted = tokenize(published_folder(tmp_path / "data", several), tmp_path / "tokens", levels=2, codes=8, progress=False)
    config = arm_config(**TINY, evaluation={"users": 0, "beams": 10}, sft={"eval_steps": 2})
    plan = plan_arm(wanted, config)
    assert [len(s) for s in plan.split.train[: wanted.dataset.n_users]] == [6] * 30  # nothing of validation or test is learned
    questions = plan.questions["evaluation"]
    assert (len(questions), len(plan.questions["validation"])) == (30 if several else 91, 30)
    own = dict(zip(plan.split.user_ids, wanted.dataset.sequences, strict=False))
    assert all(plan.split.past(u)[:6].tolist() == own[plan.split.user_ids[u]].tolist() for u in questions.names[:30])
    result = train_arm(wanted, config, tmp_path / "arm", progress=False)
    assert result.metrics["users"] == len(questions) and result.evaluation.slices is not None
    per_user = result.per_user["recall@10"]
    assert set(per_user.round(6)) <= ({0, 0.333333, 0.666667, 1} if several else {0, 1}) and per_user.max() > 0
    assert several or per_user.iloc[-1] == 0  # the item that is not in the catalogue is a miss
    assert ArmResult.load(tmp_path / "arm").metrics == result.metrics == train_arm(wanted, config, tmp_path / "arm").metrics
    frames = reference_frames(wanted.dataset, "test", result.per_user, vectors=wanted.vectors)
    assert all(frame.index.equals(result.per_user.index) for frame in frames.values())
    taken = np.concatenate(wanted.dataset.sequences)
    popular = np.argsort(-np.bincount(taken, minlength=40), kind="stable")
    for row, user in enumerate(questions.names[:5]):
        left = [i for i in popular.tolist() if i not in plan.split.past(user)][:10]
        answers = plan.split.answers(user).tolist()
        assert frames["popularity"]["recall@10"].iloc[row] == pytest.approx(sum(a in left for a in answers) / len(answers))


def test_a_published_split_that_leaks_stops_an_arm(tmp_path):
    folder = published_folder(tmp_path / "data", True)
    (folder / "train.txt").write_text((folder / "train.txt").read_text().replace("\n", " f39\n", 1))
    (folder / "test.txt").write_text((folder / "test.txt").read_text().replace("\n", " f39\n", 1))
    leaking = tokenize(folder, tmp_path / "tokens", levels=2, codes=8, progress=False)
    assert leaking.dataset.policies["repeats"] == "all"  # a target in the history of a published split is counted, and allowed
    leaking.dataset.policies["repeats"] = "first"
    with pytest.raises(GTIError, match=r"target in history \(test\): 1 of 30, first user 'u00'"):
        plan_arm(leaking, arm_config(**TINY))
