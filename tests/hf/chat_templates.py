"""Chat templates of the kinds that models have, each in a few lines, on the bundled tokenizer with their own tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from kvcompress.hub.bundled import find_checkpoint

ALTERNATE = (
    "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns of user and assistant have to alternate') }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '<call>' + c.function.name + ' ' }}"
    "{{ c.function.arguments | tojson }}{{ '</call>' }}{% endfor %}{% endif %}"
)
PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}"
    "{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
SAID = "{{ '<|im_start|>' + m.role + '\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"

CHATML = "{% for m in messages %}" + SAID + "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + ASK + "{% endif %}"
CHATML_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe of help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}"
    + SAID
    + "{{ m.content or '' }}"
    + TOOLS
    + "{{ '<|im_end|>\n' }}{% endfor %}"
    + ASK
    + "{% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}" + SAID + "{% set said = m.content %}"
    "{% if m.role == 'assistant' %}{% set thought = '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}{{ said + '<|im_end|>\n' }}{% endfor %}"
    + ASK
    + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set lead = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    + ALTERNATE
    + "{% for m in turns %}{% if m.role == 'user' %}{{ '<s>[INST] ' + (lead if loop.first else '') + m.content.strip()"
    " + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' </s>' }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    + ALTERNATE
    + "{% set ns = namespace(last=-1) %}{% for m in turns %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in turns %}{% if m.role == 'user' %}"
    "{{ '[INST]' + (lead if loop.index0 == ns.last else '') + m.content + '[/INST]' }}{% else %}"
    "{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ '<s>' }}{% if messages[0].role == 'system' %}{% set lead = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set lead = '' %}{% set turns = messages %}{% endif %}"
    + ALTERNATE
    + "{% for m in turns %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (lead if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '</s>\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
COMMAND_R = (
    "{{ '<s>' }}{% for m in messages %}{% set who = 'CHATBOT' if m.role == 'assistant' else m.role | upper %}"
    "{{ '<|START|><|' + who + '|>' + m.content.strip() + '<|STOP|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START|><|CHATBOT|>' }}{% endif %}"
)
FALCON = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}{{ m.role.title() + ': ' + m.content.strip() }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\nAssistant:' }}{% endif %}"
)
VICUNA = (
    "{{ 'A talk of two. ' }}{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + '</s>' }}{% else %}{{ m.content + ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GLM = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content.split('</think>')[-1].strip() }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}"
    "{{ '<|end|>' }}{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
OPENS_THINKING = (
    "{% for m in messages %}" + SAID + "{% set said = m.content %}{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if '<think>' in said and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>\n' }}{% endfor %}"
    + ASK
    + "{{ '<think>\n' }}{% endif %}"
)
XML = (
    "{% for m in messages %}{{ '<' + m.role + '>\n' + m.content + '\n</' + m.role + '>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)
COMMAND_R7B = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|START|><|' + m.role + '|>' }}"
    "{{ '<|RESPONSE|>' + m.content + '<|/RESPONSE|>' if m.role == 'assistant' else m.content }}"
    "{{ '<|STOP|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START|><|assistant|><|RESPONSE|>' }}{% endif %}"
)
PARTS_ALONE = CHATML.replace(
    "m.content + '<|im_end|>\n'",
    "(m.content | selectattr('text', 'defined') | map(attribute='text') | join) + '<|im_end|>\n'",
)
WITH_PARTS = CHATML.replace("{{ m.content + '<|im_end|>\n' }}", PARTS + "{{ '<|im_end|>\n' }}")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Kind:
    """A template, the token that ends an answer, and further special tokens."""

    template: str
    stop: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


KINDS = {
    "chatml": Kind(CHATML, IM[1], IM),
    "chatml with a default system turn": Kind(CHATML_SYSTEM, IM[1], IM),
    "thinking in the last answer only": Kind(THINKING, IM[1], IM, ("<think>", "</think>")),
    "llama 2": Kind(LLAMA2, "</s>", ("<s>",)),
    "llama 3": Kind(LLAMA3, "<|eot_id|>", ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")),
    "mistral": Kind(MISTRAL, "</s>", ("<s>", "[INST]", "[/INST]")),
    "gemma": Kind(GEMMA, "<end_of_turn>", ("<s>", "<start_of_turn>")),
    "phi 3": Kind(PHI3, "<|endoftext|>", ROLES),
    "zephyr": Kind(ZEPHYR, "</s>", ()),
    "deepseek": Kind(DEEPSEEK, "</s>", ("<s>", "<|User|>", "<|Assistant|>"), ("<think>", "</think>")),
    "command r": Kind(COMMAND_R, "<|STOP|>", ("<s>", "<|START|>", "<|USER|>", "<|CHATBOT|>", "<|SYSTEM|>")),
    "falcon": Kind(FALCON, "<|endoftext|>"),
    "vicuna": Kind(VICUNA, "</s>"),
    "command r7b": Kind(COMMAND_R7B, "<|STOP|>", ("<s>", "<|START|>", "<|RESPONSE|>", "<|/RESPONSE|>", *ROLES)),
    "xml": Kind(XML, "<|endoftext|>"),
    "glm": Kind(GLM, "<|endoftext|>", ("[gMASK]", "<sop>", *ROLES)),
}


@cache
def tokenizer_of(name: str) -> Any:
    """Return the bundled tokenizer with a kind's template and tokens."""
    kind = KINDS[name]
    return tokenizer_with(kind.template, kind.stop, kind.special, kind.plain)


def tokenizer_with(template: str, stop: str, special: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> Any:
    """Return the bundled tokenizer with another template, stop token, and further tokens."""
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("reference-lm"))
    tokenizer.add_special_tokens({"eos_token": stop})
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    tokenizer.chat_template = template
    return tokenizer
