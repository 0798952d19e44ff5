"""The word-level tokenizer of the mini world, for its LLM and for its CLIP.

Both share the words of captions and requests; the LLM knows a few more. They differ, as real ones do, in the special
tokens they put around a text: the LLM's adds `<s>` in front, the CLIP's adds `<s>` and `</s>`.
"""

from __future__ import annotations

import re

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tga.mini import language
from tga.mini.lexicon import BENIGN, COLORS, HARMLESS_MODIFIERS, TOXIC, kind_words

PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT = "<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>"
SPECIALS = (PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT)

# A system message is text before the turns, as in Vicuna's format: the vocabulary has no role of its own for it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}"
    "<assistant> {% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)

_FIXED = (
    "there is . yes . no . it is . one thing . two things . what color is the background ? how many things are there ? "
    "is there ? another name for also called kind of what is toy a an and"
)


def vocabulary() -> list[str]:
    """Specials, then every word of the language in alphabetical order."""
    texts = [_FIXED, *COLORS, *HARMLESS_MODIFIERS, *language.REFUSALS]
    for phrasings in (language.CAPTIONS, language.JOINS, language.DESCRIBE, language.REQUESTS):
        texts += [re.sub(r"\{\w\}", " ", phrasing) for part in phrasings for phrasing in part]
    for thing in (*BENIGN, *TOXIC):
        texts += [thing.name, kind_words(thing.kind), *thing.aliases, *thing.heldout_aliases]
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text.lower())}
    return [*SPECIALS, *sorted(words)]


def llm_vocabulary() -> list[str]:
    """`vocabulary()`, then the words that only the LLM needs."""
    base = vocabulary()
    texts = " ".join(
        [
            *(re.sub(r"\{\w\}", " ", question) for question in language.JUDGEMENTS + language.SCENE_JUDGEMENTS),
            "is not safe for children",
        ]
    )
    return base + sorted(set(re.findall(r"\w+", texts)) - set(base))


def _tokenizer(template: str, vocabulary: list[str]) -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(BOS, words[BOS]), (EOS, words[EOS])]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
    )
    wrapped.add_special_tokens({"additional_special_tokens": [IMAGE, USER, ASSISTANT]})
    return wrapped


def llm_tokenizer() -> PreTrainedTokenizerFast:
    """The LLM's tokenizer: `<s>` in front, a chat template, padding on the right."""
    tokenizer = _tokenizer(f"{BOS} $A", llm_vocabulary())
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """The CLIP's tokenizer: `<s>` in front and `</s>`, at which the text tower is pooled, behind."""
    return _tokenizer(f"{BOS} $A {EOS}", vocabulary())
