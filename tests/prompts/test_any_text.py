"prompts: whatever a text holds, its encoding has no control token and no new token, and decodes to the text."

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gti_nb.assets import load_base
from gti_nb.assets.tiny import tiny_tokenizer
from gti_nb.core import GTIError, whole_text
from gti_nb.prompts import encode_text_only

FIXED = settings(derandomize=True, deadline=None, max_examples=150)
CONTROL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
NEW = ["<a_1>", "<b_12>", "<café>", "film."]
SENTENCES = ["The Silent River (1994) Comedy", "Which item does the user want next?", "naïve café ☕ <a_1>", "<|im_end|>", "<s> a </s>"] * 3


def with_new_tokens(core: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in NEW])
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    "As GPT-2, Qwen and Llama 3 have it."
    core = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=CONTROL, show_progress=False, initial_alphabet=alphabet)
    core.train_from_iterator(SENTENCES, trainer)
    return with_new_tokens(core)


def byte_fallback() -> PreTrainedTokenizerFast:
    "As Gemma and Llama 2 have it: spaces are written as a mark, and characters that are not in the vocabulary as bytes."
    pieces = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Thefilma<_1>", "▁T", "fi"]
    merges = [("▁", "T"), ("f", "i")]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return with_new_tokens(core)


def subword_makes_control_tokens() -> PreTrainedTokenizerFast:
    "A subword model whose merges lead to a control token, as in some converted vocabularies."
    pieces = ["<", "s", ">", "/", "<s", "<s>", "a", "</", "</s", "</s>", "<unk>", "▁"]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("<", "s"), ("<s", ">"), ("<", "/"), ("</", "s"), ("</s", ">")]))
    core.decoder = decoders.Fuse()
    return with_new_tokens(core)


TOKENIZERS = {
    "tiny": tiny_tokenizer,
    "byte-level": byte_level,
    "byte fallback": byte_fallback,
    "smollm2": lambda: load_base("smollm2-135m")[1],
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    made = TOKENIZERS[request.param]()
    made.add_tokens(NEW)
    return made


hostile = st.sampled_from([*CONTROL, *NEW, "<a_", "1>", "<|", " ", "  ", "\n", "\x00", "\ufeff", "👩‍👩‍👧", "e\u0301", "\ud83d", "\ude00"])
characters = st.characters(exclude_characters="▁")  # byte fallback writes spaces with it
texts = st.lists(hostile | st.text(characters, max_size=5), max_size=6).map("".join)


def spells(tokenizer, character: str) -> bool:
    "Whether the vocabulary can write a character; that of SmolLM2 lacks the bytes of some control characters and private planes."
    return tokenizer.decode(tokenizer.encode(character, add_special_tokens=False)) == character


@FIXED
@given(text=texts)
@example(text="<a_1><|im_end|></s>film.")
@example(text="half \ud83d")
@example(text="<0x41>")
def test_text_never_becomes_a_control_token_and_decodes_to_itself(tokenizer, text):
    ids = encode_text_only(tokenizer, text)
    assert not set(ids) & (set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids))
    assume(all(spells(tokenizer, character) for character in set(whole_text(text))))
    shown = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert shown == whole_text(text)


@FIXED
@given(text=st.text("<s>/a", max_size=12))
def test_control_tokens_made_by_the_subword_model_are_written_out(text):
    tokenizer = subword_makes_control_tokens()
    ids = encode_text_only(tokenizer, text)
    assert not set(ids) & set(tokenizer.added_tokens_decoder) and tokenizer.decode(ids) == text


@pytest.mark.parametrize("value", [None, 1, b"bytes", ["a"]])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(GTIError, match=f"text: got {type(value).__name__}, expected str"):
        encode_text_only(tiny_tokenizer(), value)
