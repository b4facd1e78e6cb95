"Tiny tokenizers that behave like those of the real families: their chat templates, their first token, their spaces."

import copy
import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXTS = [
    "You are a helpful assistant.",
    "Which semantic ID does the item with this title have?",
    "What is the title of the item with this semantic ID?",
    "Describe the item with this semantic ID.",
    "The Silent River (1994) Comedy Romance",
    "The user has interacted with these items, in chronological order:",
    "user model assistant system INST SYS",
]

GEMMA_1 = (  # the same in Gemma 2
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
GEMMA_3 = (
    "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n"
    "    {%- if messages[0]['content'] is string -%}\n"
    "        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n"
    "    {%- endif -%}\n    {%- set loop_messages = messages[1:] -%}\n"
    "{%- else -%}\n    {%- set first_user_prefix = '' -%}\n    {%- set loop_messages = messages -%}\n{%- endif -%}\n"
    "{%- for message in loop_messages -%}\n"
    "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
    "        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}\n    {%- endif -%}\n"
    "    {%- if (message['role'] == 'assistant') -%}\n        {%- set role = 'model' -%}\n"
    "    {%- else -%}\n        {%- set role = message['role'] -%}\n    {%- endif -%}\n"
    "    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else '') }}\n"
    "    {%- if message['content'] is string -%}\n        {{ message['content'] | trim }}\n    {%- endif -%}\n"
    "    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_32 = (
    "{{- bos_token }}\n"
    "{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    '        {%- set date_string = strftime_now("%d %b %Y") %}\n    {%- else %}\n'
    '        {%- set date_string = "26 Jul 2024" %}\n    {%- endif %}\n{%- endif %}\n'
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
    '    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = "" %}\n{%- endif %}\n'
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}\n'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}\n{{- "Today Date: " + date_string + "\\n\\n" }}\n'
    '{{- system_message }}\n{{- "<|eot_id|>" }}\n'
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n{%- endif %}\n"
)
MISTRAL_1 = (  # v0.1 and v0.2 as they were published
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL_3 = (
    '{%- if messages[0]["role"] == "system" %}\n    {%- set system_message = messages[0]["content"] %}\n'
    "    {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
    '{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}\n'
    "{{- bos_token }}\n{%- for message in loop_messages %}\n"
    '    {%- if message["role"] == "user" %}\n'
    "        {%- if loop.last and system_message is defined or message == user_messages[-1] and system_message is defined %}\n"
    '            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}\n        {%- else %}\n'
    '            {{- "[INST] " + message["content"] + "[/INST]" }}\n        {%- endif %}\n'
    '    {%- elif message["role"] == "assistant" %}\n        {{- " " + message["content"]|trim + eos_token}}\n'
    "    {%- endif %}\n{%- endfor %}\n"
)
CHATML = (  # SmolLM2, Qwen 2.5 (which also insert a system turn of their own)
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are made by the makers of this model<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_3 = (
    "{%- if messages[0].role == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- set ns = namespace(last_query_index=messages|length - 1) %}\n"
    "{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n"
    '    {%- if message.role == "user" and ns.last_query_index == messages|length - 1 %}\n'
    "        {%- set ns.last_query_index = index %}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- for message in messages %}\n"
    '    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    '    {%- elif message.role == "assistant" %}\n'
    "        {%- set content = message.content %}\n        {%- set reasoning_content = '' %}\n"
    "        {%- if '</think>' in message.content %}\n"
    "            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n        {%- endif %}\n"
    "        {%- if loop.index0 > ns.last_query_index %}\n            {%- if loop.last or reasoning_content %}\n"
    "                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n'"
    " + content.lstrip('\\n') }}\n            {%- else %}\n"
    "                {{- '<|im_start|>' + message.role + '\\n' + content }}\n            {%- endif %}\n"
    "        {%- else %}\n            {{- '<|im_start|>' + message.role + '\\n' + content }}\n        {%- endif %}\n"
    "        {{- '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n"
    "    {%- endif %}\n{%- endif %}\n"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (  # as TinyLlama's chat model: it leaves the first token to the tokenizer
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
NO_SYSTEM = CHATML.replace("{{'<|im_start|>' + m", "{% if message['role'] != 'system' %}{{'<|im_start|>' + m").replace(
    "'\n'}}{% endfor", "'\n'}}{% endif %}{% endfor"
)
NO_GENERATION = CHATML.split("{% if add_generation_prompt")[0]

# family -> kind of vocabulary, chat template, first token, end token, control tokens, is the first token added
FAMILIES = {
    "gemma-1-base": ("gemma", None, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], True),
    "gemma-1": ("gemma", GEMMA_1, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], True),
    "gemma-3": ("gemma", GEMMA_3, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], True),
    "llama-2-base": ("prepend", None, "<s>", "</s>", [], True),
    "llama-2": ("prepend", LLAMA_2, "<s>", "</s>", [], True),
    "llama-3-base": ("bytes", None, "<|begin_of_text|>", "<|end_of_text|>", [], True),
    "llama-3": ("bytes", LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], True),
    "llama-3.2": ("bytes", LLAMA_32, "<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], True),
    "mistral-1-base": ("first", None, "<s>", "</s>", [], True),
    "mistral-1": ("first", MISTRAL_1, "<s>", "</s>", [], True),
    "mistral-3": ("always", MISTRAL_3, "<s>", "</s>", ["[INST]", "[/INST]"], True),
    "qwen-2.5": ("bytes", CHATML, "<|endoftext|>", "<|im_end|>", ["<|im_start|>"], False),
    "qwen-3": ("bytes", QWEN_3, "<|endoftext|>", "<|im_end|>", ["<|im_start|>", "<think>", "</think>"], False),
    "phi-3": ("first", PHI_3, "<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], False),
    "smollm2": ("bytes", CHATML, "<|im_start|>", "<|im_end|>", ["<|endoftext|>"], False),
    "gpt-2": ("bytes", None, "<|endoftext|>", "<|endoftext|>", [], False),
    "tinyllama": ("prepend", ZEPHYR, "<s>", "</s>", [], True),
    "drops the system turn": ("bytes", NO_SYSTEM, "<|endoftext|>", "<|im_end|>", ["<|im_start|>"], False),
    "no generation prompt": ("bytes", NO_GENERATION, "<|endoftext|>", "<|im_end|>", ["<|im_start|>"], False),
}


def _trained(pre_tokenizer: pre_tokenizers.PreTokenizer, first: list[str]) -> models.BPE:
    "A small subword model; `first` are tokens that it has in any case."
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizer
    core.train_from_iterator(
        [text.replace(" ", "▁") if first else text for text in TEXTS],
        trainers.BpeTrainer(
            vocab_size=250 if first else 360,
            initial_alphabet=[*"▁abcdefghijklmnopqrstuvwxyz?:<>[]/"] if first else pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(core.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*first, *model["vocab"]])}
    merges = [tuple(merge) for merge in model["merges"]]
    return models.BPE(vocab=vocabulary, merges=merges, byte_fallback=bool(first), unk_token=first[0] if first else None, fuse_unk=True)


def _core(kind: str) -> Tokenizer:
    """The core of a tokenizer of one kind.

    "bytes" is that of GPT-2, Llama 3 and Qwen; "gemma" writes spaces as ▁; the others also put one first: at the very beginning
    ("first"), after every control token too ("always"), or by a normalizer that adds it whatever the text begins with ("prepend").
    """
    if kind == "bytes":
        core = Tokenizer(_trained(pre_tokenizers.ByteLevel(add_prefix_space=False), []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        return core
    core = Tokenizer(_trained(pre_tokenizers.Split("▁", "merged_with_next"), ["<unk>", *(f"<0x{n:02X}>" for n in range(256))]))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if kind == "gemma":
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif kind == "prepend":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=kind, split=False)
    return core


@cache
def _family(name: str) -> PreTrainedTokenizerBase:
    kind, chat_template, first, end, control, added = FAMILIES[name]
    core = _core(kind)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=first, eos_token=end, chat_template=chat_template)
    strip = name == "phi-3"  # its control tokens take the space after them
    tokenizer.add_tokens([AddedToken(token, special=not token.startswith("<think"), normalized=False, rstrip=strip) for token in control])
    if added:
        core = tokenizer.backend_tokenizer
        core.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)])
    return tokenizer


def family(name: str) -> PreTrainedTokenizerBase:
    "A new tokenizer of a family in `FAMILIES`."
    return copy.deepcopy(_family(name))
