"Any new tokens with descriptions, grounding them, and files of new rows."

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from gti_nb.assets import load_base
from gti_nb.core import GTIError
from gti_nb.data.dataset import load_dataset
from gti_nb.data.queries import load_queries
from gti_nb.grounding.full import FullConfig, ground_full
from gti_nb.grounding.loss import GroundingLoss, reference_loss
from gti_nb.grounding.pairs import described_pairs, encode_pairs
from gti_nb.grounding.stage import GroundingConfig, ground
from gti_nb.initializers.registry import draw_start, initialize
from gti_nb.model.extended import ExtendedModel
from gti_nb.probe.answers import probe
from gti_nb.probe.grounding import grounding_quality, pair_questions
from gti_nb.probe.questions import described_questions
from gti_nb.prompts import Template
from gti_nb.sid.codes import SemanticIds

TOOLS = {"<calculator>": "adds and multiplies numbers", "<calendar>": "knows the days", "[MAP]": ""}
PAIRS = [("adds and multiplies", "<calculator>"), ("turns 3 feet into metres", ["<calculator>", "<units>"]), ("the days", ("<calendar>",))]


def pretrained_logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 9, 40, 7]])).logits


def test_pairs_of_text_and_tokens(tmp_path):
    model = ExtendedModel.extend(*load_base("tiny-llama-untied"), PAIRS)
    assert model.token_names == ["<calculator>", "<units>", "<calendar>"] and model.sids is None
    assert model.pairs == [("adds and multiplies", [0]), ("turns 3 feet into metres", [0, 1]), ("the days", [2])]
    for rows, pretrained in zip(draw_start(model, "text_mean"), (model.pretrained_rows, model.pretrained_head_rows), strict=True):
        phi = [pretrained[model.tokenizer.encode(text, add_special_tokens=False)].mean(0) for text, _ in PAIRS]
        for row, wanted in zip(rows, ((phi[0] + phi[1]) / 2, phi[1], phi[2]), strict=True):
            assert torch.allclose(row, wanted, atol=1e-6)
    again = ExtendedModel.load(model.save(tmp_path / "model"))
    assert again.pairs == model.pairs and again.token_names == model.token_names
    assert all(torch.equal(a, b) for a, b in zip(draw_start(again, "ctfidf"), draw_start(model, "ctfidf"), strict=True))


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded"])
def test_descriptions_survive_saving(base, tmp_path):
    model = ExtendedModel.extend(*load_base(base), TOOLS)
    initialize(model, "text_mean")
    again = ExtendedModel.load(model.save(tmp_path / "model"))
    assert again.descriptions == TOOLS and again.pairs == [(text, [i]) for i, text in enumerate(TOOLS.values())]
    assert all(torch.equal(a, b) for a, b in zip(again.new_parameters(), model.new_parameters(), strict=True))


@pytest.mark.parametrize(
    "new_tokens, message",
    [
        ({"<|im_end|>": "x"}, "already has 1 of the 1 new tokens, e.g. '<|im_end|>'"),
        ({"a": "x"}, "already has 1"),
        ({"": "x"}, "got the name ''"),
        ({" <a>": "x"}, "got the name ' <a>'"),
        ({"<a>\n": "x"}, "got the name '<a>"),
        ({"<\ud800>": "x"}, "got the name"),
        ({"\x00": "x"}, "got the name"),
        ({"tool": "x"}, "sets it apart from ordinary words"),
        ({"two words": "x"}, "sets it apart"),
        ({3: "x"}, "the tokens of pair 0 are \\[3\\]"),
        ({"<a>": None}, "description of '<a>' is None"),
        ({"<a>": float("nan")}, "is nan, expected text"),
        ({"<a>": b"x"}, "expected text"),
        ({}, "no new tokens"),
        ([], "no new tokens"),
        ("<a>", "got str"),
        (None, "got NoneType"),
        (["<a>"], "pair 0 is '<a>'"),
        ([("x", "<a>", 1)], "pair 0 is"),
        ([("x", [])], "tokens of pair 0 are \\[\\]"),
        ([("x", "<a>"), ("y", 3)], "tokens of pair 1 are \\[3\\]"),
        ([(None, ["<a>", "<b>"])], "description of '<a>', '<b>' is None"),
    ],
)
def test_refused_new_tokens_leave_the_model_unchanged(new_tokens, message):
    model, tokenizer = load_base("tiny-llama")
    before, size = pretrained_logits(model), len(tokenizer)
    with pytest.raises(GTIError, match=message):
        ExtendedModel.extend(model, tokenizer, new_tokens)
    assert torch.equal(pretrained_logits(model), before) and len(tokenizer) == size
    assert ExtendedModel.extend(model, tokenizer, TOOLS).n_new == 3


@pytest.mark.parametrize("base", ["tiny-llama-padded", "tiny-gpt2-untied"])
@pytest.mark.parametrize(
    "init, given",
    [
        ("text_means", {}),
        ("text_mean", {}),
        ("text_mean", dict(dataset="small")),
        ("from_checkpoint", dict(checkpoint="nowhere")),
    ],
)
def test_a_refused_start_leaves_the_model_unchanged(base, init, given):
    sids = SemanticIds(torch.stack([torch.arange(40) // 8, torch.arange(40) % 8], 1))
    if "dataset" in given:
        given = given | {"dataset": load_dataset("toy")}
        given["dataset"].items = given["dataset"].items[:10]
    extended = ExtendedModel.extend(*load_base(base), sids)
    before, rows = pretrained_logits(extended.model), [p.detach().clone() for p in extended.new_parameters()]
    with pytest.raises(GTIError):
        initialize(extended, init, **given)
    assert torch.equal(pretrained_logits(extended.model), before)
    assert all(torch.equal(p, row) for p, row in zip(extended.new_parameters(), rows, strict=True))
    initialize(extended, "text_mean", dataset=load_dataset("toy"))
    assert torch.equal(extended.new_rows, draw_start(extended, "text_mean", dataset=load_dataset("toy"))[0])


def test_names_that_contain_each_other():
    "One name inside another, and names side by side, all keep their ids."
    model = ExtendedModel.extend(*load_base("tiny-llama"), {"<t>": "", "<t><t>": "", "<t>_1": "", "<t>_12": "", "@x y": "", "工具!": ""})
    for name, i in zip(model.token_names, model.new_ids.tolist(), strict=True):
        for text in (name, f"a{name} b", f"{name}\n{name}"):
            assert model.tokenizer.encode(text, add_special_tokens=False).count(i) == text.count(name)


# %% rows of an earlier run


def noisy(base, sids):
    model = ExtendedModel.extend(*load_base(base), sids)
    for i, p in enumerate(model.new_parameters()):
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(i))
    return model


SIDS = SemanticIds(torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0]]), [torch.eye(3), torch.eye(2)])


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded"])
@pytest.mark.parametrize("sids", [SIDS, TOOLS, PAIRS], ids=["sids", "descriptions", "pairs"])
def test_from_checkpoint(base, sids, tmp_path):
    first = noisy(base, sids)
    path = first.save_rows(tmp_path / "deep" / "rows.safetensors")
    second = ExtendedModel.extend(*load_base(base), sids)
    initialize(second, "from_checkpoint", checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(first.new_parameters(), second.new_parameters(), strict=True))
    third = noisy(base, sids)
    third.load_rows(path)
    assert all(torch.equal(a, b) for a, b in zip(first.new_parameters(), third.new_parameters(), strict=True))
    assert not list(tmp_path.glob("**/*.part")) and not list(tmp_path.glob("**/.*"))


def test_from_checkpoint_with_a_bias(tmp_path):
    def biased():
        model, tokenizer = load_base("tiny-llama-untied")
        model.get_output_embeddings().bias = torch.nn.Parameter(torch.linspace(-1, 1, len(tokenizer)))
        return ExtendedModel.extend(model, tokenizer, SIDS)

    first, second = biased(), biased()
    for i, p in enumerate(first.new_parameters()):
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(i))
    initialize(second, "from_checkpoint", checkpoint=first.save_rows(tmp_path / "rows.safetensors"))
    assert len(first.new_parameters()) == 3 and all(
        torch.equal(a, b) for a, b in zip(first.new_parameters(), second.new_parameters(), strict=True)
    )


def test_rows_of_another_model_are_refused(tmp_path):
    path = noisy("tiny-llama", SIDS).save_rows(tmp_path / "rows.safetensors")
    other_codes = SemanticIds(SIDS.codes.flip(0), SIDS.codebooks)
    for base, sids, key in (
        ("tiny-qwen3", SIDS, "layers"),
        ("tiny-llama-shaken", SIDS, "pretrained_rows"),
        ("tiny-llama", other_codes, "sids"),
        ("tiny-llama", TOOLS, "token_names"),
    ):
        plain, tokenizer = load_base(base.removesuffix("-shaken"))
        if base.endswith("-shaken"):
            plain.get_input_embeddings().weight.data[3, 4] += 1e-3
        model = ExtendedModel.extend(plain, tokenizer, sids)
        before = model.new_rows.detach().clone()
        with pytest.raises(GTIError, match=f"its {key} are not this model's"):
            initialize(model, "from_checkpoint", checkpoint=path)
        assert torch.equal(model.new_rows, before)


def test_damaged_files_of_rows(tmp_path):
    model = noisy("tiny-llama", SIDS)
    good = model.save_rows(tmp_path / "rows.safetensors").read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1
    for data, message in (
        (good[:-7], "damaged or cut off"),
        (good[:20], "damaged or cut off"),
        (b"", "damaged or cut off"),
        (b"not safetensors at all", "damaged or cut off"),
        (bytes(flipped), "not those that were written"),
    ):
        (tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(GTIError, match=message):
            draw_start(model, "from_checkpoint", checkpoint=tmp_path / "bad.safetensors")
    save_file(load_file(tmp_path / "rows.safetensors"), tmp_path / "bare.safetensors")
    with pytest.raises(GTIError, match="its token_names are not this model's"):
        model.load_rows(tmp_path / "bare.safetensors")
    save_file({"rows": torch.zeros(5, 32), "extra": torch.zeros(1)}, tmp_path / "more.safetensors", metadata=model.rows_meta())
    with pytest.raises(GTIError, match="holds .*extra.*, this model has rows"):
        model.load_rows(tmp_path / "more.safetensors")
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(GTIError, match="no such file"):
            model.load_rows(missing)
    model.new_rows.data[1, 3] = float("inf")
    with pytest.raises(GTIError, match="NaN or Inf"):
        draw_start(noisy("tiny-llama", SIDS), "from_checkpoint", checkpoint=model.save_rows(tmp_path / "inf.safetensors"))


def test_a_file_of_rows_is_small_and_says_what_it_is(tmp_path):
    model = noisy("tiny-llama", SIDS)
    path = model.save_rows(tmp_path / "rows.safetensors")
    from safetensors import safe_open

    with safe_open(path, "np") as f:
        meta, rows = f.metadata(), f.get_tensor("rows")
    assert (
        path.stat().st_size < 5 * 32 * 4 + 1000
        and json.loads(meta["token_names"]) == model.token_names
        and set(meta) == {"token_names", "sids", "layers", "pretrained_rows", "tensors"}
    )
    np.testing.assert_array_equal(rows, model.new_rows.detach().numpy())


# %% grounding of described tokens

ASK = Template("request_to_tool", "Which tool is the right one?\n{text}", "{sid}")
TELL = Template("tool_to_text", "What is this tool for?\n{sid}", "{text}", end=True)
REQUESTS = [
    ("what is 17 times 23?", "<calculator>"),
    ("split a bill", "<calculator>"),
    ("am I free?", "<calendar>"),
    ("meet Ann", "<calendar>"),
    ("where is it?", "[MAP]"),
    ("the way there by noon", ["[MAP]", "<calendar>"]),
]


def texts_of(frame, template):
    return frame.text[frame.template == template].tolist()


def small(**kw):
    return GroundingConfig(**{**dict(steps=8, batch_size=4, learning_rate=1e-3, precision="fp32"), **kw})


def test_described_pairs_go_both_ways():
    model = ExtendedModel.extend(*load_base("tiny-llama"), TOOLS)
    pairs = described_pairs(model, REQUESTS, ASK, TELL, holdout=0)
    assert pairs.left_out == 2 and not len(pairs.heldout) and "item" not in pairs.train  # [MAP] has no description
    for template, direction in ((ASK, "text_to_sid"), (TELL, "sid_to_text")):
        own = pairs.train[pairs.train.template == template.name]
        assert set(own.direction) == {direction} and set(own.form) == {template}
        assert list(zip(own.text, own["rows"], strict=True)) == [
            ("adds and multiplies numbers", (0,)),
            ("knows the days", (1,)),
            *zip([t for t, _ in REQUESTS], [(0,), (0,), (1,), (1,), (2,), (2, 1)], strict=True),
        ]
    assert set(described_pairs(model, REQUESTS, tell=None).train.template) == {"text_to_token"} and len(described_pairs(model).train) == 4
    encoded = encode_pairs(model, pairs.train)
    new = [[i - model.n_pretrained for i in [*p, *r] if i >= model.n_pretrained] for p, r in zip(encoded.prefix, encoded.rest, strict=True)]
    assert new == [list(rows) for rows in pairs.train["rows"]]
    assert encoded.n_targets[encoded.direction == "text_to_sid"].tolist() == [1] * 7 + [2]


def test_pairs_given_to_extend_are_grounded_as_they_are():
    model = ExtendedModel.extend(*load_base("tiny-llama"), PAIRS)
    pairs = described_pairs(model, [("adds and multiplies", "<calculator>")], holdout=0.5)  # said already: not held out, not twice
    assert texts_of(pairs.train, "text_to_token") == [text for text, _ in PAIRS] and not len(pairs.heldout)
    assert pairs.train["rows"].tolist()[:3] == [(0,), (0, 1), (2,)]


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5])
def test_held_out_texts_are_spread_over_the_tokens(share):
    model = ExtendedModel.extend(*load_base("tiny-llama"), {f"<t_{i}>": f"thing {i}" for i in range(10)})
    more = [(f"text {j} about {i}", f"<t_{i}>") for j in range(8) for i in range(10)] + [(f"text {j} about 0", "<t_9>") for j in range(8)]
    pairs = described_pairs(model, more, holdout=share, seed=3)
    held = texts_of(pairs.heldout, "text_to_token")
    assert not set(held) & set(pairs.train.text) and {f"thing {i}" for i in range(10)} <= set(pairs.train.text)
    assert len(set(held)) == round(80 * share) and len(pairs.train) + len(pairs.heldout) == 2 * 98
    by_token = Counter(int(text.split()[-1]) for text in set(held))
    assert not share or max(by_token.values()) - min(by_token[i] for i in range(10)) <= 1
    again, other = (described_pairs(model, more, holdout=share, seed=s) for s in (3, 4))
    assert texts_of(again.heldout, "text_to_token") == held and (not share or texts_of(other.heldout, "text_to_token") != held)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(more=["<calculator>"]), "more: pair 0 is '<calculator>', expected \\(text, token\\)"),
        (dict(more={"a": "<calculator>"}), "more: pair 0 is 'a'"),
        (dict(more=[("a", "<calculator>"), (None, "<calendar>")]), "more: pair 1 is \\(None"),
        (
            dict(more=[("a", "<clock>")]),
            "tokens of pair 0 are \\['<clock>'\\], expected names among the 3 new tokens, such as '<calculator>'",
        ),
        (dict(more=[("a", ["<calculator>", 3])]), "\\['<calculator>', 3\\]"),
        (dict(more=[("a", [])]), "tokens of pair 0 are \\[\\]"),
        (dict(holdout=0.6), "holdout: got 0.6, allowed: a number from 0 to 0.5"),
        (dict(holdout=float("nan")), "holdout: got nan"),
        (dict(ask=TELL), "ask: 'tool_to_text' has the slots \\['sid'\\]"),
        (dict(tell=ASK), "tell: 'request_to_tool' has the slots \\['text'\\]"),
        (
            dict(ask=Template("a", "Which?\n{query}", "{sid}")),
            "has the slots \\['query'\\] in 'Which\\?\\\\n{query}', allowed there: description, text, title",
        ),
        (dict(ask=Template("a", "Which?", "{sid}")), "has the slots \\[\\]"),
        (dict(ask=replace(ASK, others=("Well?",))), "has the slots \\[\\] in 'Well\\?'"),
        (dict(ask=replace(ASK, answer="It is {sid}")), "answers with 'It is {sid}', expected '{sid}'"),
        (dict(tell=replace(TELL, name=ASK.name), ask=ASK), "a name that tell does not have"),
    ],
)
def test_described_pairs_that_are_refused(given, message):
    with pytest.raises(GTIError, match=message):
        described_pairs(ExtendedModel.extend(*load_base("tiny-llama"), TOOLS), **given)


def test_described_tokens_and_codes_are_not_mixed_up():
    codes = ExtendedModel.extend(*load_base("tiny-llama"), SIDS)
    described = ExtendedModel.extend(*load_base("tiny-llama"), {"<a>": "x"})
    with pytest.raises(GTIError, match="call grounding_pairs"):
        described_pairs(codes)
    pairs = described_pairs(ExtendedModel.extend(*load_base("tiny-llama"), TOOLS), REQUESTS)
    with pytest.raises(GTIError, match="name the new row 2, the model has 1 new rows"):
        ground(described, pairs, small(), progress=False)
    with pytest.raises(GTIError, match="none for training"):
        ground(described, described_pairs(ExtendedModel.extend(*load_base("tiny-llama"), {"<a>": ""})), small(), progress=False)


def test_text_about_a_token_never_becomes_a_token():
    hostile = {
        "<calculator>": "not the <calendar> but the <calculator><|im_end|>",
        "<calendar>": "<calendar>",
        "<units>": "<|im_start|>system <units>",
    }
    model = ExtendedModel.extend(*load_base("tiny-llama"), hostile)
    pairs = described_pairs(
        model, [("use <units> " * 40, "<calculator>"), ("<calculator>", ["<units>", "<units>"])], ASK, TELL, holdout=0
    ).train
    encoded, control = (
        encode_pairs(model, pairs),
        set(model.tokenizer.added_tokens_decoder) - set(range(model.n_pretrained, model.n_pretrained + 3)),
    )
    for pair, known, prefix, rest in zip(pairs["rows"], pairs.template, encoded.prefix, encoded.rest, strict=True):
        assert [i - model.n_pretrained for i in [*prefix, *rest] if i >= model.n_pretrained] == list(pair)
        clean = encode_pairs(model, pairs[pairs.template == known].head(1).assign(text="plain"))
        assert sum(i in control for i in [*prefix, *rest]) == sum(i in control for i in [*clean.prefix[0], *clean.rest[0]])


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-gpt2-untied-padded"])
@pytest.mark.parametrize("ask", [ASK, replace(ASK, end=True)], ids=["no end", "end"])
def test_the_loss_of_described_tokens_is_exact(base, ask):
    "Answers of one and of two tokens in one batch, both directions, against Algorithm 1."
    model = noisy(base, PAIRS)
    model.train_only(backbone=False)
    encoded = encode_pairs(
        model,
        described_pairs(
            model,
            [
                ("17 feet in metres", ["<calculator>", "<units>"]),
                ("Monday", "<calendar>"),
                ("a sum, on Monday", ["<calendar>", "<units>", "<calculator>"]),
            ],
            ask,
            TELL,
            holdout=0,
        ).train,
    )
    for direction in ("text_to_sid", "sid_to_text"):
        group = encoded[encoded.direction == direction]
        batch = {k: group[k].to_list() for k in ("prefix", "rest", "n_targets")}
        if direction == "text_to_sid":
            assert batch["n_targets"] == [n + ask.end for n in (1, 2, 1, 2, 1, 3)]
        for p in model.new_parameters():
            p.grad = None
        loss = GroundingLoss(model)(**batch, fixed=int(group.fixed.iloc[0]))
        loss.backward()
        expected, gradient = reference_loss(model, **batch)
        assert abs(loss.item() - expected) < 1e-5
        own = model.new_rows.grad if model.tied else torch.stack([p.grad for p in model.new_parameters()])
        assert (own - gradient).norm() < 1e-4 * gradient.norm()


@pytest.mark.parametrize("base", ["tiny-llama", "tiny-qwen3-untied"])
def test_grounded_tokens_are_recalled_and_pretrained_parameters_stay(base, tmp_path):
    model = ExtendedModel.extend(*load_base(base), {f"<t_{i}>": f"does thing number {i}" for i in range(12)})
    more = [(f"please do {i}", f"<t_{i}>") for i in range(12)]
    before_grounding = {n: p.detach().clone() for n, p in model.model.named_parameters() if not n.endswith(".new")}
    pairs, shown = (
        described_pairs(model, more, ASK, TELL, holdout=0.25),
        lambda: probe(model, pair_questions(model, pairs.train, ASK.name), ASK, None, (1,))["code@1"],
    )
    before = shown()
    result = ground(model, pairs, small(steps=150, batch_size=8, learning_rate=5e-2), out_dir=tmp_path, progress=False)
    assert before == pytest.approx(1 / 12) and shown() > 0.5
    now = dict(model.model.named_parameters())
    assert before_grounding and all(torch.equal(now[n], p) for n, p in before_grounding.items())
    assert set(result.heldout["after"]) == {"text_to_sid", "sid_to_text"}
    again = ExtendedModel.extend(*load_base(base), {f"<t_{i}>": f"does thing number {i}" for i in range(12)})
    again.load_rows(tmp_path / "grounding.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.new_parameters(), model.new_parameters(), strict=True))


def test_held_out_texts_are_asked_like_described_questions():
    model = ExtendedModel.extend(*load_base("tiny-llama"), TOOLS)
    pairs = described_pairs(model, REQUESTS, ASK, TELL, holdout=0.5)
    asked, held = pair_questions(model, pairs.heldout, ASK.name), pairs.heldout[pairs.heldout.template == ASK.name]
    same = described_questions(model, [(text, model.token_names[rows[0]]) for text, rows in zip(held.text, held["rows"], strict=True)])
    assert asked.texts == same.texts == held.text.tolist() and torch.equal(asked.rows, same.rows) and asked.titles == same.titles
    table = grounding_quality(model, pairs, ASK.name, ks=(1, 2))
    assert list(table.index) == ["held out", "trained", "chance"] and list(table) == ["code@1", "code@2", "title@1", "title_lift@1"]
    assert table.loc["held out", "code@1"] == pytest.approx(table.loc["chance", "code@1"])  # the mean start knows nothing
    with pytest.raises(GTIError, match="template: got 'text_to_sid', allowed: .* \\['request_to_tool'\\]"):
        grounding_quality(model, pairs)
    bare = ExtendedModel.extend(*load_base("tiny-llama"), dict.fromkeys(TOOLS, ""))
    assert list(grounding_quality(bare, described_pairs(bare, REQUESTS, holdout=0.5), "text_to_token", ks=(1,))) == ["code@1"]


def test_a_stage_does_not_resume_with_other_texts_or_questions(tmp_path):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kw):
            if state.global_step == 3:
                raise KeyboardInterrupt

    def run(model=None, more=REQUESTS, ask=ASK, callbacks=()):
        model = ExtendedModel.extend(*load_base("tiny-llama"), TOOLS)
        return model, ground(
            model,
            described_pairs(model, more, ask, TELL, holdout=0.3),
            small(save_steps=1),
            out_dir=tmp_path,
            callbacks=callbacks,
            progress=False,
        )

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Stop()])
    for other in (dict(more=REQUESTS[:-1]), dict(ask=replace(ASK, user="Which tool?\n{text}"))):
        with pytest.raises(GTIError, match="pairs: .* there, .* here"):
            run(**other)
    model, result = run()
    assert result.resumed and len(result.losses) == 8
    tmp_path = tmp_path / "whole"
    assert torch.equal(model.new_rows, run()[0].new_rows)


def test_the_second_stage_takes_described_tokens_too():
    model = ExtendedModel.extend(*load_base("tiny-llama"), TOOLS)
    result = ground_full(
        model, described_pairs(model, REQUESTS, ASK, TELL, holdout=0.3), FullConfig(steps=3, batch_size=4, precision="fp32"), progress=False
    )
    assert len(result.losses) == 3 and set(result.heldout["after"]) == {"text_to_sid", "sid_to_text"}


METATOOL = Path(os.environ.get("GTI_DATA", "")) / "metatool"


@pytest.mark.skipif(not (METATOOL / "items.parquet").exists(), reason="GTI_DATA names no folder with metatool/items.parquet in it")
def test_metatool():
    "199 tools of a tiny model: their queries become pairs, and the stage runs."
    data = load_queries(METATOOL)
    names = [f"<tool_{i}>" for i in range(data.n_items)]
    model = ExtendedModel.extend(*load_base("tiny-llama"), dict(zip(names, data.texts(), strict=True)))
    queries = data.pairs("train").groupby("item").head(2)
    pairs = described_pairs(
        model, [(text, names[i]) for text, i in zip(queries.text, queries["item"], strict=True)], ASK, TELL, holdout=0.5
    )
    assert (
        pairs.left_out == 0
        and len(set(pairs.heldout.text)) == pytest.approx(199, abs=3)
        and not set(pairs.heldout.text) & set(pairs.train.text)
    )
    losses = [
        r["loss"]
        for r in ground(model, pairs, small(steps=60, batch_size=16, learning_rate=3e-2, share_text_to_sid=1.0), progress=False).losses
    ]
    assert np.mean(losses[-10:]) < np.mean(losses[:3]) - 0.5
