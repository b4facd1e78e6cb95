"A model is asked, not assumed: what it does to its logits, how far it looks back, how many tokens it reads, and how names come back."

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_families import plain_model
from model_table import SIDS, close, extended_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from gti_nb.assets import load_base
from gti_nb.assets.tiny import tiny_tokenizer
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.decode.beam import beam_search
from gti_nb.decode.trie import SidTrie
from gti_nb.grounding.full import FullConfig, PairLoss, ground_full
from gti_nb.grounding.loss import GroundingLoss, reference_loss
from gti_nb.grounding.pairs import encode_pairs, grounding_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.model.abilities import LogitRule, max_positions
from gti_nb.model.extended import ExtendedModel
from gti_nb.model.losses import own_losses
from gti_nb.model.tokens import add_tokens
from gti_nb.probe.answers import probe, title_scores
from gti_nb.probe.questions import item_questions
from gti_nb.sft.config import SFTConfig
from gti_nb.sft.examples import example_from
from gti_nb.sft.stage import finetune

few = settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def toy():
    return load_dataset("toy")


def small(**kw) -> GroundingConfig:
    return GroundingConfig(**dict(dict(steps=2, batch_size=4, precision="fp32", warmup_steps=0), **kw))


def small_full(**kw) -> FullConfig:
    return FullConfig(**dict(dict(steps=2, batch_size=4, precision="fp32", warmup_steps=0), **kw))


def own_loss(extended, pairs) -> float:
    "The model's own mean loss of encoded pairs, each alone."
    rows = [p + r for p, r in zip(pairs.prefix, pairs.rest, strict=True)]
    scored = [np.arange(len(row)) >= len(row) - n for row, n in zip(rows, pairs.n_targets, strict=True)]
    return float(np.average(own_losses(extended.merge(), rows, scored), weights=pairs.n_targets))


def examples(lengths: list[int]) -> list:
    ids = np.random.default_rng(0).integers(3, 320, max(lengths))
    return [example_from("retrieval", ids[:n], n - 2) for n in lengths]


# ---- what a model does to its logits


@pytest.mark.parametrize("stage", ["grounding", "grounding_full"])
@pytest.mark.parametrize("family, scale", [("Granite", 1 / 8), ("Cohere", 0.25), ("Cohere 2", 0.25)])
def test_the_losses_that_a_stage_reports_are_the_models_own(family, scale, stage, toy):
    extended = extended_model(family)
    assert extended.rule == LogitRule(scale)
    pairs = grounding_pairs(toy, SIDS, holdout=0.2)
    held = encode_pairs(extended, pairs.heldout)
    own = {direction: own_loss(extended, group) for direction, group in held.groupby("direction")}
    run = ground(extended, pairs, small(heldout_pairs=0), progress=False) if stage == "grounding" else None
    run = run or ground_full(extended, pairs, small_full(heldout_pairs=0), progress=False)
    assert run.heldout["before"] == pytest.approx(own, rel=1e-4)
    assert run.losses[0]["loss"] > 0 and run.heldout["after"] != run.heldout["before"]


@few
@given(scale=st.floats(0.05, 20), cap=st.one_of(st.none(), st.floats(0.5, 50)))
def test_the_slope_of_a_rule_is_its_derivative(scale, cap):
    rule, raw = LogitRule(scale, cap), torch.linspace(-30, 30, 41, dtype=torch.float64, requires_grad=True)
    logits, slope = rule.with_slope(raw)
    torch.testing.assert_close(logits, rule(raw))
    expected = torch.autograd.grad(rule(raw).sum(), raw)[0]
    torch.testing.assert_close(torch.ones_like(raw) * slope if scale != 1 or cap else torch.ones_like(raw), expected)


class Louder(LlamaForCausalLM):
    "Multiplies its logits by a number that its configuration does not tell."

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 3 * out.logits
        return out


def louder(model):
    model.__class__ = Louder


def bright_embedding(model):
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: 2 * out)


def look_ahead(model):
    model.base_model.layers[0].register_forward_hook(lambda module, args, out: out + out.mean(1, keepdim=True))


def second_table(model):
    table = torch.nn.Embedding(320, 32)
    model.base_model.second = table

    def add(module, args, kwargs, out):
        out.last_hidden_state = out.last_hidden_state + table(kwargs["input_ids"])
        return out

    model.base_model.register_forward_hook(add, with_kwargs=True)


@pytest.mark.parametrize(
    "change, why",
    [
        (louder, "computes its logits in another way"),
        (bright_embedding, "does more with its embedding or head"),
        (look_ahead, "lets a token see those after it"),
        (second_table, "looks tokens up in a second table too, of 320 rows"),
    ],
)
def test_a_model_that_does_something_else_is_refused_at_extend_and_left_as_it_was(change, why):
    model, tokenizer = load_base("tiny-llama")
    change(model)
    embed, size, ids = model.get_input_embeddings(), model.config.vocab_size, torch.tensor([[5, 9, 40, 7]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with pytest.raises(GTIError, match=f"{type(model).__name__} \\(llama\\) {why}"):
            ExtendedModel.extend(model, tokenizer, SIDS)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert model.get_input_embeddings() is embed and model.config.vocab_size == size and len(tokenizer) == 320


@pytest.mark.parametrize("family", ["Gemma 4 E2B, E4B", "BERT", "BART"])
def test_a_family_that_cannot_be_extended_is_left_as_it_was(family):
    model = plain_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GTIError, match="see docs/models.md"):
        ExtendedModel.extend(model, tiny_tokenizer(), SIDS)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForSequenceClassification"])
def test_a_model_without_a_head_over_its_vocabulary_is_refused_by_name(kind):
    model = getattr(transformers, kind).from_config(load_base("tiny-llama")[0].config)
    with pytest.raises(GTIError, match=f"{type(model).__name__} \\(llama\\) has no output head over its vocabulary"):
        ExtendedModel.extend(model, tiny_tokenizer(), SIDS)


def test_a_model_that_a_saved_folder_could_not_give_back_is_refused_by_its_own_type():
    text = load_base("tiny-llama")[0].config
    vision = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=28, patch_size=14)
    config = transformers.LlavaConfig(text_config=text, vision_config=transformers.CLIPVisionConfig(**vision), image_token_index=5)
    with pytest.raises(GTIError, match=r"LlavaForConditionalGeneration \(llava\) is no causal language model that `AutoModelForCausalLM`"):
        ExtendedModel.extend(transformers.LlavaForConditionalGeneration(config), tiny_tokenizer(), SIDS)


# ---- how far it looks back


@few
@given(window=st.integers(2, 90), family=st.sampled_from(["Mistral", "Gemma 3", "Cohere 2", "OLMo 3", "GPT-Neo"]), seed=st.integers(0, 99))
def test_grounding_is_exact_whatever_the_window(window, family, seed, toy):
    "Pairs shorter and longer than the window, in one batch, both directions: loss and gradient of the new rows."
    extended = extended_model(family, **{"window_size" if family == "GPT-Neo" else "sliding_window": window})
    extended.train_only(backbone=False)
    loss, rng = GroundingLoss(extended), np.random.default_rng(seed)
    for name in ("text_to_sid", "sid_to_title"):
        pairs = encode_pairs(extended, grounding_pairs(toy, SIDS, (name,), wordings=1, holdout=0).train)
        group = pairs.iloc[rng.choice(len(pairs), 3, replace=False)]
        batch = {k: group[k].to_list() for k in ("prefix", "rest", "n_targets")}
        value = loss(**batch, fixed=int(group.fixed.iloc[0]))
        (gradient, *_) = torch.autograd.grad(value, extended.new_parameters())
        own, expected = reference_loss(extended, **batch)
        assert abs(value.item() - own) < 1e-4 and close(gradient, expected if extended.tied else expected[0])


@pytest.mark.parametrize("family", ["Mistral", "Gemma 3"])
def test_prompts_of_195_tokens_and_a_window_of_128(family, toy):
    extended = extended_model(family, sliding_window=128)
    extended.train_only(backbone=False)
    ids = np.random.default_rng(0).integers(3, 320, 195).tolist()
    rest = extended.token_ids[7].tolist()
    batch = dict(prefix=[ids, ids[:40]], rest=[rest, rest], n_targets=[2, 2])
    value = GroundingLoss(extended)(**batch, fixed=20)
    own, expected = reference_loss(extended, **batch)
    (gradient, *_) = torch.autograd.grad(value, extended.new_parameters())
    assert abs(value.item() - own) < 1e-5 and close(gradient, expected if extended.tied else expected[0])


@pytest.mark.parametrize("family", ["Llama", "Gemma 3", "Gemma 4", "Mamba", "LFM2"])
def test_title_scores_are_the_models_own(family, toy):
    extended = extended_model(family)
    rows, titles = SIDS.token_index[:3], toy.items.title.tolist()[:4]
    found = title_scores(extended, rows, titles)
    plain = encode_pairs(extended, grounding_pairs(toy, SIDS, ("sid_to_title",), wordings=1, holdout=0).train)
    for i in range(3):
        one = plain.iloc[[i]]  # the i-th item's own title
        assert -found[i, i].item() / one.n_targets.iloc[0] == pytest.approx(own_loss(extended, one), rel=1e-4)


# ---- what reads otherwise beside a long text


def turned_by_length(extended, limit: int):
    "Let every token of a batch be read otherwise as soon as one text in it is longer, as some rotary positions are."

    def turn(module, args, out):
        return out * 1.5 if out.shape[1] > limit else out

    extended.model.get_input_embeddings().register_forward_hook(turn)


def test_a_model_that_reads_short_texts_otherwise_beside_long_ones_is_refused_before_any_training(toy, tmp_path):
    extended = extended_model("Llama")
    pairs = grounding_pairs(toy, SIDS, ("text_to_sid", "sid_to_title"), wordings=1, holdout=0.2)
    lengths = [len(p) + len(r) for p, r in encode_pairs(extended, pairs.train)[["prefix", "rest"]].to_numpy()]
    limit = sum(sorted(lengths[: len(lengths) // 2])[:: len(lengths) // 2 - 1]) // 2  # between the shortest and the longest of a template
    turned_by_length(extended, limit)
    batches = [examples([limit - 20, limit + 20])] * 2
    before = extended.fingerprint()
    for stage in (
        lambda: ground(extended, pairs, small(), out_dir=tmp_path, progress=False),
        lambda: ground_full(extended, pairs, small_full(), out_dir=tmp_path, progress=False),
        lambda: finetune(extended, batches, SFTConfig(steps=2, batch_size=2, precision="fp32"), tmp_path, progress=False),
    ):
        with pytest.raises(GTIError, match=r"LlamaForCausalLM \(llama\): the loss of .* by the model itself"):
            stage()
    assert extended.fingerprint() == before and not any(tmp_path.iterdir())
    questions = item_questions(toy, SIDS, n=8)
    questions.texts = [text if i % 2 else "long " * 100 for i, text in enumerate(questions.texts)]
    with pytest.raises(GTIError, match=r"LlamaForCausalLM \(llama\): reads a prompt of \d+ tokens otherwise beside others than alone"):
        probe(extended, questions, tell=None)


# ---- how many tokens it reads


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "OPT"])
def test_texts_beyond_the_positions_are_refused_before_any_stage(family, toy, tmp_path):
    extended = extended_model(family, **({"n_positions": 128} if family == "GPT-2" else {"max_position_embeddings": 128}))
    name = f"{type(extended.model).__name__} ({extended.model.config.model_type})".replace("(", r"\(").replace(")", r"\)")
    toy = load_dataset("toy")
    toy.items["description"] = "a very long description of an item " * 100
    pairs = grounding_pairs(toy, SIDS, holdout=0.2)
    before = extended.fingerprint()
    for stage in (
        lambda: ground(extended, pairs, small(max_text_tokens=5000), out_dir=tmp_path, progress=False),
        lambda: ground_full(extended, pairs, small_full(max_text_tokens=5000), out_dir=tmp_path, progress=False),
        lambda: finetune(extended, [examples([30, 129])] * 2, SFTConfig(steps=2, batch_size=2, precision="fp32"), tmp_path, progress=False),
    ):
        with pytest.raises(GTIError, match=rf"\d+ tokens, {name} reads 128; lower max_text_tokens"):
            stage()
    with pytest.raises(GTIError, match=rf"prompts: the longest, with its codes: 130 tokens, {name} reads 128"):
        beam_search(extended, [[5] * 129, [5]], SidTrie(SIDS))
    with pytest.raises(GTIError, match=rf"{name} reads 128"):
        title_scores(extended, SIDS.token_index[:2], ["long title " * 100, "short"], max_tokens=500)
    questions = item_questions(toy, SIDS)
    questions.texts[0] = "word " * 400
    with pytest.raises(GTIError, match=rf"prompts: the longest: \d+ tokens, {name} reads 128"):
        probe(extended, questions)
    assert extended.fingerprint() == before and not any(tmp_path.iterdir())
    for precise in (128, 127):  # the last position counts
        PairLoss(extended)(prefix=[[5] * (precise - 2)], rest=[[320, 324]], n_targets=[2])


def test_positions_that_turn_by_length_end_where_they_turn():
    factors = [1.0] * 4
    for kind, rope in (
        ("phi3", dict(rope_type="longrope", short_factor=factors, long_factor=[4.0] * 4)),
        ("llama", dict(rope_type="dynamic", factor=4.0)),
        ("llama", dict(rope_type="linear", factor=4.0)),
    ):
        family = "Phi 3, 4" if kind == "phi3" else "Llama"
        own = {"original_max_position_embeddings": 64} if kind == "phi3" else {}
        model = plain_model(family, max_position_embeddings=256, rope_parameters=dict(rope, rope_theta=10000.0, **own), **own)
        assert max_positions(model) == (64 if kind == "phi3" else 256)


# ---- how names come back

LETTERS = st.text(st.characters(codec="utf-8", categories=["L", "N", "M", "P", "S"]), min_size=1, max_size=8)


@settings(few, max_examples=80)
@given(names=st.lists(LETTERS.map("<{}>".format), min_size=1, max_size=4, unique=True))
def test_a_name_comes_back_as_it_was_or_is_refused_by_name(names, tmp_path):
    try:
        tokenizer, first = add_tokens(tiny_tokenizer(), names)
    except GTIError as e:
        assert any(repr(name) in str(e) for name in names) or "names repeat" in str(e)
        return
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for i, name in enumerate(names, first):
            ids = loaded.encode(name, add_special_tokens=False)
            assert ids == [i] and loaded.decode(ids) == name
        text = "a " + " b ".join(names)
        assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == text


def test_a_name_that_is_how_a_pretrained_token_is_written_is_refused():
    "A byte-level decoder that spelled the name would spell a part of the pretrained token too."
    tokenizer = load_base("smollm2-135m")[1]
    known = tokenizer.get_vocab()
    longer = [t for t in known if t.startswith("Ġ") and t[1:2] in "=(-*" and f"{t}=" not in known]
    name, whole = next((t[:n], t) for t in longer for n in range(2, len(t)) if t[:n] not in known)
    before = tokenizer.decode([known[whole]])
    with pytest.raises(GTIError, match="is how this tokenizer writes part of its own token"):
        add_tokens(tokenizer, [name])
    assert tokenizer.decode([known[whole]]) == before


@pytest.mark.parametrize("base", ["tiny-llama", "smollm2-135m"])
def test_accents_in_names_come_back_in_the_saved_folder_too(base, tmp_path):
    names = ["<café>", "<đem>", "<日本>", "<tool_1>", "<ação>", "<👩‍👧>", "<می‌خواهم>"]
    extended = ExtendedModel.extend(*load_base(base), dict.fromkeys(names, "a word"))
    extended.tokenizer.save_pretrained(tmp_path)
    text = "my <café> and<đem> café đem <日本><ação>"
    for tokenizer in (extended.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert [tokenizer.decode([i]) for i in extended.new_ids.tolist()] == names
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_tokenizer_class_that_builds_its_decoder_anew_is_refused_where_it_would_break_a_name(tmp_path):
    plain, config = tiny_tokenizer(), tmp_path / "tokenizer_config.json"
    plain.save_pretrained(tmp_path)
    config.write_text(
        config.read_text().replace("PreTrainedTokenizerFast", "Qwen2Tokenizer").replace("TokenizersBackend", "Qwen2Tokenizer")
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    model = load_base("tiny-llama")[0]
    with pytest.raises(GTIError, match="loaded from a saved folder: the new token '<café>' decodes to '<caf\ufffd>'; choose another name"):
        ExtendedModel.extend(model, tokenizer, {"<café>": "a place"})
    assert ExtendedModel.extend(model, tokenizer, {"<cafe>": "a place"}).n_new == 1


def test_a_saved_family_with_a_factor_generates_the_same(tmp_path):
    "Granite and Cohere 2 after a search, a save and a load: the lists of the loaded model are those of the first."
    for family in ("Granite", "Cohere 2"):
        extended = extended_model(family)
        folder = extended.save(tmp_path / extended.model.config.model_type)
        again, prompts = ExtendedModel.load(folder), [[5, 6, 7], [8] * 9]
        assert again.rule == extended.rule
        lists = [beam_search(model, prompts, SidTrie(SIDS), beams=10) for model in (extended, again)]
        assert torch.equal(lists[0].items, lists[1].items)
        assert all(a >= b for a, b in pairwise(lists[0].scores[0].tolist()))
        assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 320 + 14
