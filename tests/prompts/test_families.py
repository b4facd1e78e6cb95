"Prompts of the real families: the whole prompt is what the family's own template and tokenizer make of the conversation."

import datetime
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts.families import FAMILIES, family

from gti_nb.core import GTIError
from gti_nb.model.tokens import add_tokens
from gti_nb.prompts import GROUNDING, RETRIEVAL, SFT, SYSTEM, Template, beginning, encode_template, encode_text_only, fill, fix_date
from gti_nb.prompts.turns import turns_around

SID = ["<a_0>", "<b_1>"]
ROLES = ("system", "user", "assistant")
TEXT = "The Silent River"
SLOTS = dict.fromkeys(("title", "description", "text", "intention", "preference", "query"), TEXT)
EVERY = [*GROUNDING.values(), *SFT.values(), RETRIEVAL, Template("spaced", "The item {title} is meant.", "It is:{sid}")]
PLAIN = [name for name, about in FAMILIES.items() if about[0] in ("bytes", "gemma")]  # their decoder gives back every space


def extended_family(name):
    "A tokenizer with the new tokens of a semantic ID, and their ids."
    tokenizer, first = add_tokens(family(name), SID)
    return tokenizer, [first, first + 1]


def conversation(tokenizer, template, wording, **texts):
    "The conversation as text, by the tokenizer's own chat template, up to the end of the answer or before the answer."
    for turns in (
        [dict(role="system", content=SYSTEM), dict(role="user", content=template.wordings[wording].format(**texts))],
        [dict(role="user", content=f"{SYSTEM}\n\n{template.wordings[wording].format(**texts)}")],
    ):
        if tokenizer.chat_template is None:
            return f"{SYSTEM}\n\n{turns[-1]['content']}\n\n{template.answer.format(**texts)}"
        try:
            whole = tokenizer.apply_chat_template([*turns, dict(role="assistant", content=template.answer.format(**texts))], tokenize=False)
        except Exception:
            continue
        if SYSTEM in whole:
            return whole
    raise AssertionError


@pytest.mark.parametrize("name", FAMILIES)
def test_every_prompt_is_the_tokenizers_own_encoding_of_the_conversation(name):
    tokenizer, sid = extended_family(name)
    first = beginning(tokenizer)
    for template in EVERY:
        for wording in range(len(template.wordings)):
            whole = conversation(tokenizer, template, wording, sid="".join(SID), history="".join(SID), **SLOTS)
            expected = tokenizer.encode(whole, add_special_tokens=False)
            expected = expected if expected[: len(first)] == first else first + expected
            ids, start = fill(encode_template(tokenizer, template, wording), sid=sid, history=sid, **SLOTS)
            if template.end and tokenizer.chat_template is None:
                expected = [*expected, tokenizer.eos_token_id]
            if name in ("llama-2", "mistral-3") and not template.end and template.answer.startswith("{"):
                ids[start:start] = tokenizer.convert_tokens_to_ids(["▁"])  # " <a_0>": the space before a semantic ID is left out
            assert ids == expected[: len(ids)], (template.name, wording, tokenizer.decode(ids), tokenizer.decode(expected))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_begins_as_the_tokenizer_begins_and_has_its_first_token_once(name):
    tokenizer, sid = extended_family(name)
    first, added = FAMILIES[name][2], FAMILIES[name][5]
    for template in EVERY:
        ids, _ = fill(encode_template(tokenizer, template), sid=sid, history=sid, **SLOTS)
        if added:
            assert ids[0] == tokenizer.convert_tokens_to_ids(first) and ids.count(ids[0]) == 1, template.name
        elif tokenizer.chat_template is None:
            assert ids[0] not in tokenizer.all_special_ids


def test_switched_off_first_token_stays_off():
    tokenizer = family("llama-2-base")
    tokenizer.backend_tokenizer.post_processor = None
    assert beginning(tokenizer) == []
    ids, _ = fill(encode_template(tokenizer, RETRIEVAL), history=[])
    assert tokenizer.bos_token_id not in ids


def test_a_tokenizer_that_also_adds_an_end_token_gives_only_the_first():
    from tokenizers.processors import TemplateProcessing

    tokenizer = family("llama-2-base")
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    ids, _ = fill(encode_template(tokenizer, GROUNDING["title_to_sid"]), title=TEXT, sid=[])
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("gemma-1", ["<end_of_turn>"]),  # its tokenizer's end token is <eos>, which ends no turn
        ("gemma-3", ["<end_of_turn>"]),
        ("gemma-1-base", ["<eos>"]),
        ("llama-2", ["▁", "</s>"]),
        ("llama-3", ["<|eot_id|>"]),
        ("mistral-3", ["</s>"]),
        ("phi-3", ["<|end|>"]),
        ("qwen-3", ["<|im_end|>"]),
        ("smollm2", ["<|im_end|>"]),
    ],
)
def test_a_text_answer_ends_as_a_turn_ends(name, end):
    tokenizer, sid = extended_family(name)
    ids, start = fill(encode_template(tokenizer, GROUNDING["sid_to_title"]), sid=sid, title=TEXT)
    assert tokenizer.convert_ids_to_tokens(ids[start:])[-len(end) - 1 :] == ["▁River" if "▁River" in tokenizer.get_vocab() else "er", *end]


@pytest.mark.parametrize("name", ["gemma-1", "mistral-1", "drops the system turn"])
def test_the_systems_text_is_folded_into_the_users_turn(name):
    turns = turns_around(family(name), "example", "Which item?", "{sid}")
    assert turns.before.endswith(f"{SYSTEM}\n\n") and "assistant" not in turns.before.replace(SYSTEM, "")


def test_qwen_3_answers_without_a_thought():
    tokenizer, sid = extended_family("qwen-3")
    ids, start = fill(encode_template(tokenizer, RETRIEVAL), history=sid)
    turns = [dict(role="system", content=SYSTEM), dict(role="user", content=RETRIEVAL.user)]
    own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert tokenizer.decode(ids[:start]) == own


@pytest.mark.parametrize(
    ("chat_template", "why"),
    [
        ("{{ raise_exception('This model only takes tools') }}", "This model only takes tools"),
        ("{% for m in messages %}{{ m.content", "unexpected end of template"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "can only concatenate str"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not write the question and the answer as they are"),
        ("{{ messages[0].content }}", "does not write the question and the answer as they are"),
        ("always the same", "does not write the question and the answer as they are"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[-2].content }}", ""),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "does not write the question and the answer as they are"),
    ],
)
def test_other_failures_of_a_template_are_one_sentence(chat_template, why):
    tokenizer = family("smollm2")
    tokenizer.chat_template = chat_template
    if not why:
        encode_template(tokenizer, GROUNDING["title_to_sid"])
        return
    with pytest.raises(GTIError, match=why) as e:
        encode_template(tokenizer, GROUNDING["title_to_sid"])
    message = str(e.value)
    assert (
        message.startswith("title_to_sid: the tokenizer's chat template") and "\n" not in message and "None for plain paragraphs" in message
    )


PARTS = (  # as templates of models that also see images
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)
FIRST_PART = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content[0].text + '<|im_end|>\n' }}{% endfor %}"


@pytest.mark.parametrize("chat_template", [PARTS, FIRST_PART])
@pytest.mark.parametrize("name", ["smollm2", "qwen-2.5", "qwen-3"])
def test_a_template_of_parts_gives_what_its_tokenizer_makes_of_parts(name, chat_template):
    tokenizer, sid = extended_family(name)
    tokenizer.chat_template = chat_template
    for template in EVERY:
        user = template.user.format(sid="".join(SID), history="".join(SID), **SLOTS)
        answer = template.answer.format(sid="".join(SID), history="".join(SID), **SLOTS)
        turns = [dict(role=r, content=[dict(type="text", text=t)]) for r, t in zip(ROLES, (SYSTEM, user, answer), strict=True)]
        first, own = beginning(tokenizer), tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)
        own = own if own[: len(first)] == first else first + own
        ids, _ = fill(encode_template(tokenizer, template), sid=sid, history=sid, **SLOTS)
        assert ids == own[: len(ids)], template.name


def test_a_template_that_prints_parts_as_python_does_is_not_taken():
    tokenizer = family("smollm2")
    tokenizer.chat_template = "{% for m in messages %}{% if m.content is not string %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(GTIError, match="does not write the question and the answer as they are"):
        encode_template(tokenizer, Template("plain", "Which item?", "{sid}"))


@pytest.mark.parametrize(
    "asked", ["%A, %d %B %Y", "%-d.%-m.%y", "100%% of %Y", "%%d %d", "%D %e %h %n%t %C %G %g %V %u", "%%%d", '"%j"', "it's %b"]
)
def test_a_date_is_written_as_strftime_writes_it(asked):
    tokenizer = family("smollm2")
    tokenizer.chat_template = "{{ strftime_now(" + json.dumps(asked) + ") }} " + tokenizer.chat_template
    fix_date(tokenizer, "2026-07-05")
    assert turns_around(tokenizer, "example", "Which item?", "{sid}").before.startswith(datetime.datetime(2026, 7, 5).strftime(asked) + " ")


def test_several_named_templates_take_the_default_one():
    tokenizer = family("qwen-2.5")
    alone, _ = fill(encode_template(tokenizer, RETRIEVAL), history=[])
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ raise_exception('tools') }}"}
    assert fill(encode_template(tokenizer, RETRIEVAL), history=[])[0] == alone
    tokenizer.chat_template = {"tool_use": "no default"}
    with pytest.raises(GTIError, match="retrieval: the tokenizer's chat template fails"):
        encode_template(tokenizer, RETRIEVAL)


def test_a_question_with_space_around_it_is_found_by_templates_that_trim():
    tokenizer, sid = extended_family("gemma-1")
    ids, start = fill(encode_template(tokenizer, Template("spaced", "  Which item?\n{title}\n", " {sid}\n")), title=TEXT, sid=sid)
    assert tokenizer.decode(ids[:start]).endswith(f"\n\n  Which item?\n{TEXT}<end_of_turn>\n<start_of_turn>model\n") and ids[start:] == sid


@given(text=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=40), name=st.sampled_from(PLAIN))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_stands_in_a_prompt_as_it_is(text, name):
    tokenizer, sid = extended_family(name)
    turns = turns_around(tokenizer, "example", GROUNDING["title_to_sid"].user, "{sid}")
    ids, start = fill(encode_template(tokenizer, GROUNDING["title_to_sid"]), title=text, sid=sid)
    written = tokenizer.decode(ids[:start])
    first = tokenizer.decode(beginning(tokenizer))
    expected = (turns.before + turns.user + turns.between).replace("{title}", text)
    assert written == (expected if expected.startswith(first) else first + expected)
    assert ids[start:] == sid
    empty, _ = fill(encode_template(tokenizer, GROUNDING["title_to_sid"]), title="", sid=sid)
    control = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    assert [i for i in ids if i in control] == [i for i in empty if i in control]


@pytest.mark.parametrize("name", FAMILIES)
def test_names_of_control_tokens_in_text_stay_text(name):
    tokenizer, sid = extended_family(name)
    hostile = " ".join([*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values()), *SID])
    for inside in (False, True):
        ids = encode_text_only(tokenizer, hostile, inside=inside)
        assert not {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} & set(ids)
        assert tokenizer.decode(ids).strip() == hostile


def test_padding_side_and_limits_of_the_tokenizer_do_not_change_a_prompt():
    plain, sid = extended_family("llama-3")
    expected = fill(encode_template(plain, GROUNDING["title_to_sid"]), title=TEXT, sid=sid)
    tokenizer, sid = extended_family("llama-3")
    tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length = "left", "left", 5
    tokenizer.pad_token = tokenizer.eos_token
    assert fill(encode_template(tokenizer, GROUNDING["title_to_sid"]), title=TEXT, sid=sid) == expected
