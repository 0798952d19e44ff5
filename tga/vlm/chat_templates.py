"""The built-in chat templates, as Jinja texts that mark what the assistant says with `{% generation %}`.

`tokenizer.apply_chat_template(messages, chat_template=..., return_assistant_tokens_mask=True)` of transformers takes
them as they are. Each learns the answer and the token that ends it, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatTemplate:
    """One format of conversations.

    Attributes:
        jinja: the template, over `messages` of role and content.
        words: the user's words stay beside a picture.
        picture_first: pictures stand before everything, even before the beginning-of-sequence token.
    """

    jinja: str
    words: bool = True
    picture_first: bool = False


# LLaVA's first stage: `<s><image>\ncaption</s>`; the user's words are dropped beside a picture.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{{ '\n' }}{% endif %}{% endfor %}"
)

# LLaVA-1.5's second stage, with its system text: `USER: ... ASSISTANT: ...</s>USER: ...`.
VICUNA_V1 = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. {% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}{{ ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' }}{{ message['content'] }}{{ ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' }}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# A system text waits for the user's next turn, which it opens; none is ever dropped.
_SYSTEM_WAITS = "{% set next.system = (next.system + '\n\n' if next.system else '') + message['content'] %}"
_NONE_IS_LEFT = "{% if next.system %}{{ raise_exception('A system message needs a user turn after it') }}{% endif %}"

# LLaVA on Llama-2-chat: the system text within an instruction, each exchange between `<s>` and `</s>`.
LLAVA_LLAMA_2 = (
    "{% set next = namespace(system=none, first=true) %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ bos_token }}{{ '[INST] ' }}{% if next.first and next.system is none %}"
    "{% set next.system = 'You are a helpful language and vision assistant. You are able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using natural "
    "language.' %}{% endif %}"
    "{% if next.system %}{{ '<<SYS>>\n' + next.system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{% set next.system = none %}{% set next.first = false %}"
    "{{ message['content'] }}{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' }}"
    "{% generation %}{{ message['content'] }}{{ ' ' }}{{ eos_token }}{% endgeneration %}"
    "{% else %}" + _SYSTEM_WAITS + "{% endif %}{% endfor %}" + _NONE_IS_LEFT
)

# Mistral-7B-Instruct: `<s>[INST] ... [/INST] ...</s>[INST] ...`; a system text opens the instruction that follows it.
MISTRAL_INSTRUCT = (
    "{% set next = namespace(system='') %}{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if next.system %}{{ next.system + '\n\n' }}{% set next.system = '' %}{% endif %}"
    "{{ message['content'] }}{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' }}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}" + _SYSTEM_WAITS + "{% endif %}{% endfor %}" + _NONE_IS_LEFT
)

# InstructBLIP: the picture's tokens, then `<s>`, the words of the question and the answer, without roles.
INSTRUCTBLIP = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' }}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{% if not loop.first and loop.previtem['role'] == 'system' %}{{ ' ' }}{% endif %}"
    "{{ message['content'] }}{% endif %}{% endfor %}"
)

BUILT_IN: dict[str, ChatTemplate] = {
    "plain": ChatTemplate(PLAIN, words=False),
    "vicuna_v1": ChatTemplate(VICUNA_V1),
    "llava_llama_2": ChatTemplate(LLAVA_LLAMA_2),
    "mistral_instruct": ChatTemplate(MISTRAL_INSTRUCT),
    "instructblip": ChatTemplate(INSTRUCTBLIP, picture_first=True),
}
OF_THE_TOKENIZER = "tokenizer"
TEMPLATES = (*BUILT_IN, OF_THE_TOKENIZER)
