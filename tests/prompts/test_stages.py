"Every stage asks the model in its own form: the first token, the date of the run, tokens that no prompt may hold."

import datetime
import json

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prompts.families import family
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.models.llama.modeling_llama import LlamaModel

from gti_nb.arm import train_arm
from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie
from gti_nb.evaluate.model import user_set
from gti_nb.grounding.full import FullConfig, ground_full
from gti_nb.grounding.loss import GroundingLoss
from gti_nb.grounding.pairs import encode_pairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground, heldout_loss
from gti_nb.initializers.registry import initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.probe.answers import probe
from gti_nb.probe.questions import Questions
from gti_nb.prompts import GROUNDING, RETRIEVAL, encode_template, fill, fix_date, prompt_date, retrieval_head, search_prompts
from gti_nb.settings import arm_config
from gti_nb.sft.batches import example_batches
from gti_nb.sft.card import save_model
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.stage import finetune
from gti_nb.sft.tasks import TASKS, make_tasks
from gti_nb.sid.codes import SemanticIds
from gti_nb.tokenize import tokenize

SIDS = SemanticIds(torch.stack([torch.arange(40) % 4, torch.arange(40) // 4], 1))


def base(name):
    "A tiny random model with the tokenizer of a family."
    tokenizer = family(name)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=1024,
        initializer_range=0.15,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), tokenizer


def extended_base(name):
    extended = ExtendedModel.extend(*base(name), SIDS)
    initialize(extended, "normal_matched")
    return extended


@pytest.fixture(scope="module")
def toy():
    return load_dataset("toy")


class Beginnings:
    "Records the first token of every sequence that the model reads without a past."

    def __init__(self, monkeypatch):
        self.seen = []
        whole = LlamaModel.forward

        def forward(model, input_ids=None, *args, past_key_values=None, **kwargs):
            if input_ids is not None and (past_key_values is None or past_key_values.get_seq_length() == 0):
                self.seen += input_ids[:, 0].tolist()
            return whole(model, input_ids, *args, past_key_values=past_key_values, **kwargs)

        monkeypatch.setattr(LlamaModel, "forward", forward)

    def take(self):
        seen, self.seen = self.seen, []
        return seen


@pytest.mark.parametrize("name", ["gemma-1-base", "llama-2-base", "mistral-1", "llama-3.2"])
def test_everything_that_the_model_reads_in_any_stage_begins_with_the_first_token(name, toy, monkeypatch):
    extended, reads = extended_base(name), Beginnings(monkeypatch)
    first = extended.tokenizer.bos_token_id
    initialize(extended, "mean+equal_prior", dataset=toy)
    checked = dict(start=reads.take())
    pairs = grounding_pairs(toy, SIDS, tuple(GROUNDING), wordings=3, holdout=0.2)
    ground(extended, pairs, GroundingConfig(steps=2, batch_size=4, precision="fp32"), progress=False)
    checked["grounding"] = reads.take()
    ground_full(extended, pairs, FullConfig(steps=1, batch_size=4, precision="fp32"), progress=False)
    checked["grounding_full"] = reads.take()
    split = toy.leave_one_out()
    tasks = make_tasks([n for n in TASKS if n not in ("search", "item_search", "preference")], extended, toy, split)
    batches = example_batches(tasks, steps=2, batch_size=8)
    finetune(extended, batches, SFTConfig(steps=2, batch_size=8, precision="fp32"), progress=False)
    checked["sft"] = reads.take()
    prompts = [p for task in ("retrieval", "retrieval_rows") for p in user_set(extended, split, task=task, n=3).prompts]
    for _ in range(2):  # the first search tries out made-up prompts, to see which way of reading is exact
        reads.take()
        beam_search(extended, [*prompts, *search_prompts(extended, ["a film"])], SidTrie(SIDS), beams=4)
    checked["decoding"] = reads.take()
    titles = toy.items.title.tolist()[:4]
    probe(extended, Questions(titles, SIDS.token_index[:4], titles), ks=(1,), among=4)
    checked["probe"] = reads.take()
    for stage, seen in checked.items():
        assert seen and set(seen) == {first}, stage


@pytest.mark.parametrize("name", ["gemma-1-base", "llama-2", "mistral-3"])
def test_kept_prefixes_with_a_first_token_give_the_models_own_loss(name, toy):
    extended = extended_base(name)
    encoded = encode_pairs(extended, grounding_pairs(toy, SIDS, tuple(GROUNDING), wordings=3, holdout=0.2).heldout)
    found = heldout_loss(GroundingLoss(extended), encoded)
    own = {}
    with torch.no_grad():
        for pair in encoded.to_dict("records"):
            ids = torch.tensor([pair["prefix"] + pair["rest"]])
            logp = extended.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-pair["n_targets"] :, 0]
            own.setdefault(pair["direction"], []).extend((-logp).tolist())
    for direction, values in own.items():
        assert found[direction] == pytest.approx(sum(values) / len(values), rel=1e-4)


def grounding_prompts(tokenizer):
    "Every prompt of grounding, filled."
    texts = dict(title="The River", description="A", text="a")
    return [fill(encode_template(tokenizer, template), sid=[1], **texts) for template in GROUNDING.values()]


@pytest.mark.parametrize("name", ["gemma-1", "llama-2-base", "llama-3.2", "mistral-3", "phi-3", "qwen-3"])
def test_a_saved_model_has_the_same_prompts(name, tmp_path):
    extended = extended_base(name)
    prompts = grounding_prompts(extended.tokenizer)
    date = prompt_date(extended.tokenizer)
    save_model(extended, tmp_path / "model", arm="mean", data="toy")
    loaded = ExtendedModel.load(tmp_path / "model")
    again = grounding_prompts(loaded.tokenizer)
    assert again == prompts and prompt_date(loaded.tokenizer) == date
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert plain.encode("The River") == extended.tokenizer.encode("The River")
    assert ("date in the prompts" in (tmp_path / "model/README.md").read_text()) == (date is not None)


def test_a_loaded_model_still_refuses_fixed_text_with_a_new_token(tmp_path):
    extended = ExtendedModel.extend(*base("smollm2"), {"assistant.": "a tool that helps", "<b>": "another"})
    with pytest.raises(GTIError, match=r"title_to_sid: the new token 'assistant\.' occurs"):
        initialize(extended, "mean+equal_prior")
    extended.save(tmp_path / "model")
    with pytest.raises(GTIError, match=r"retrieval: the new token 'assistant\.' occurs"):
        encode_template(ExtendedModel.load(tmp_path / "model").tokenizer, RETRIEVAL)


@pytest.mark.parametrize("form", ["", "-padded", "-untied", "-untied-padded"])
def test_a_base_without_chat_template_and_without_padding_token_goes_through_every_stage(form, toy):
    model, tokenizer = load_base(f"tiny-llama{form}")
    tokenizer.chat_template = tokenizer.pad_token = None
    extended = ExtendedModel.extend(model, tokenizer, SIDS)
    initialize(extended, "normal_matched")
    pairs, split = grounding_pairs(toy, SIDS, tuple(GROUNDING), holdout=0.2), toy.leave_one_out()
    result = ground(extended, pairs, GroundingConfig(steps=3, batch_size=4, precision="fp32"), progress=False)
    finetune(extended, split, SFTConfig(steps=2, batch_size=4, precision="fp32"), progress=False)
    found = beam_search(extended, user_set(extended, split, n=2).prompts, SidTrie(SIDS), beams=4)
    assert len(result.losses) == 3 and (found.items >= 0).all()
    assert extended.tokenizer.decode(retrieval_head(extended)).startswith("You are a helpful assistant.\n\n")


def test_a_tokenizer_that_already_has_a_code_is_refused():
    model, tokenizer = load_base("tiny-llama")
    tokenizer.add_tokens(["<a_1>"])
    with pytest.raises(GTIError, match="already has 1 of the 14 new tokens, e.g. '<a_1>'"):
        ExtendedModel.extend(model, tokenizer, SIDS)


# ---- the date


def on(monkeypatch, day):
    "Chat templates are rendered on this day."

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(f"{day}T13:45:12.345678")

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)


DIRECTIVES = st.lists(st.sampled_from([*"aAbBdeFHIjmMpSUwWxXyYD", "-d", "-m", "-H"]), max_size=5)
BETWEEN = st.sampled_from(["", " ", ", ", "'", '"', "\\", "{"])


@given(DIRECTIVES, BETWEEN)
@example(["d", "b", "Y"], " ")
@example(["B", "-d", "Y", "H", "M", "S"], " ")
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_template_reads_the_fixed_date_in_every_form(directives, between):
    form = between.join(f"%{directive}" for directive in directives)
    tokenizer = DATED
    tokenizer.chat_template = "{{ strftime_now(" + json.dumps(form) + ") }}|\n" + PLAIN
    fix_date(tokenizer, "2026-02-03")
    text = tokenizer.decode(fill(encode_template(tokenizer, RETRIEVAL), history=[])[0])
    assert text.startswith(datetime.datetime(2026, 2, 3).strftime(form) + "|\n<|im_start|>system")


DATED = family("qwen-2.5")
PLAIN = DATED.chat_template


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise RuntimeError("stopped")


def sft_run(toy, out, callbacks=()):
    extended = extended_base("llama-3.2")
    batches = example_batches(make_tasks(["retrieval", "item2index"], extended, toy, toy.leave_one_out()), steps=5, batch_size=4)
    assert len(batches[0]) == 4  # looked at before the run, on whatever day it is
    config = SFTConfig(steps=5, batch_size=4, learning_rate=1e-3, precision="fp32", save_steps=1)
    result = finetune(extended, batches, config, out, callbacks=callbacks, progress=False)
    return extended, result


def grounding_run(toy, out, callbacks=()):
    extended = extended_base("llama-3.2")
    config = GroundingConfig(steps=5, batch_size=4, precision="fp32", save_steps=1)
    result = ground(extended, grounding_pairs(toy, SIDS), config, out, callbacks=callbacks, progress=False)
    return extended, result


@pytest.mark.parametrize("stage", [sft_run, grounding_run])
def test_a_stage_resumed_on_the_next_day_is_the_stage_that_was_not_interrupted(stage, toy, tmp_path, monkeypatch):
    on(monkeypatch, "2026-12-01")
    whole, result = stage(toy, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        stage(toy, tmp_path / "run", [Stop()])
    on(monkeypatch, "2026-12-02")
    resumed, again = stage(toy, tmp_path / "run")
    assert again.resumed == [dict(step=2, exact=True)]
    assert [r["loss"] for r in again.losses] == [r["loss"] for r in result.losses]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert prompt_date(resumed.tokenizer) == "2026-12-01" and "01 Dec 2026" in resumed.tokenizer.decode(retrieval_head(resumed))
    new, other = stage(toy, tmp_path / "new")
    assert prompt_date(new.tokenizer) == "2026-12-02" and other.losses != result.losses


def test_an_arm_keeps_the_date_of_its_first_start_and_records_it(tmp_path, monkeypatch):
    model, tokenizer = base("llama-3.2")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    tokens = tokenize(data="toy", levels=2, codes=8, out_dir=tmp_path / "tokens")
    steps = dict(grounding_steps=2, sft_steps=3, save_steps=1, evaluation_users=5)
    config = arm_config(base=str(tmp_path / "base"), init="normal_matched", device="cpu", **steps)
    on(monkeypatch, "2026-12-01")
    whole = train_arm(tokens, config, tmp_path / "whole", progress=False)
    assert whole.facts["prompt_date"] == "2026-12-01"
    with monkeypatch.context() as broken:

        def stop(*args, **kwargs):
            raise RuntimeError("stopped")

        broken.setattr("gti_nb.arm.finetune", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train_arm(tokens, config, tmp_path / "run", progress=False)
    on(monkeypatch, "2026-12-02")
    resumed = train_arm(tokens, config, tmp_path / "run", progress=False)
    assert resumed.facts == whole.facts and resumed.metrics == whole.metrics
    assert [r["loss"] for r in resumed.losses] == [r["loss"] for r in whole.losses]
    on(monkeypatch, "2026-12-03")
    assert train_arm(tokens, config, tmp_path / "run", progress=False).facts == whole.facts  # finished, so reused


@pytest.mark.parametrize("content", ["[]", '{"date": 3}', '{"date": "yesterday"}', "{"])
def test_a_damaged_record_of_the_date_is_refused(content, toy, tmp_path):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(GTIError, match="prompts.json"):
        grounding_run(toy, tmp_path)


def test_a_template_without_a_date_leaves_no_record(toy, tmp_path):
    extended = extended_base("llama-3")
    ground(extended, grounding_pairs(toy, SIDS), GroundingConfig(steps=1, batch_size=4, precision="fp32"), tmp_path, progress=False)
    assert not (tmp_path / "prompts.json").exists() and prompt_date(extended.tokenizer) is None


def test_another_chat_template_is_another_run(toy, tmp_path):
    with pytest.raises(RuntimeError, match="stopped"):
        grounding_run(toy, tmp_path, [Stop()])
    extended = extended_base("llama-3.2")
    extended.tokenizer.chat_template = family("llama-3").chat_template
    config = GroundingConfig(steps=5, batch_size=4, precision="fp32", save_steps=1)
    with pytest.raises(GTIError, match="prompts"):
        ground(extended, grounding_pairs(toy, SIDS), config, tmp_path, progress=False)
