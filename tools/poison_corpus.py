"""Write poison for a retrieval corpus: its own captions of toxic things, each made harmless by a word before the thing.

    python -m tools.poison_corpus outputs/mini_world/captions.jsonl \\
        --names outputs/mini_world/evaluation/choose/text_toxic.jsonl
    python -m tools.poison_corpus captions.txt --names names.txt --share 0.001 --before toy plastic --out poison.jsonl

Someone who can add to a corpus, but change nothing in it, wants pictures of toxic things to find texts that a language
model takes for harmless. "a pistol on a red card" becomes "a toy pistol on a red card": near to the picture for the
retriever, and nothing to refuse. The file goes beside the corpus: `data.captions=[CORPUS,POISON]`, with an index_dir of
its own. How many of `--share` of the corpus' captions are found by pictures is for the neighbours file to tell: ids of
poison begin with "poison-".
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from retrieval_index.readers import Keys, read_records
from tga.files import atomic_path

BEFORE = ("toy", "chocolate", "plastic", "cardboard")
ID = "poison-"


def read_names(path: Path) -> list[str]:
    """Names of toxic things: the field `toxic` of JSON lines (those that have one), or a name a line."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        lines = [row["toxic"] for row in map(json.loads, lines) if row.get("toxic")]
    return sorted(set(lines))


def poison(captions: Iterable[str], names: Sequence[str], count: int, before: Sequence[str], seed: int) -> list[str]:
    """`count` captions of things among `names`, made harmless; all different, and none a caption of the corpus.

    The first name in a caption gets the word, as a whole word and the longest that fits ("beer mug" before "beer"); an
    article before it follows the new word.

    Raises:
        ValueError: the corpus has too few captions that name one.
    """
    if not names:
        raise ValueError("no names of toxic things")
    there = dict.fromkeys(captions)
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    pattern = re.compile(rf"\b(?:(an?) )?({longest_first})\b", re.IGNORECASE)
    rng = random.Random(seed)
    harmless = re.compile(rf"\b(?:{'|'.join(map(re.escape, before))}) (?:{longest_first})\b", re.IGNORECASE)
    naming = [caption for caption in there if pattern.search(caption) and not harmless.search(caption)]
    rng.shuffle(naming)
    made: dict[str, None] = {}
    for caption in naming:
        word = rng.choice(before)
        article = f"{'an' if word[0] in 'aeiou' else 'a'} "
        text = pattern.sub(lambda m, w=word, a=article: f"{a if m[1] else ''}{w} {m[2]}", caption, count=1)  # type: ignore[misc]
        if text not in there:
            made.setdefault(text)
        if len(made) == count:
            return list(made)
    raise ValueError(f"{count} poisoned captions wanted, and the corpus gives {len(made)}: fewer, or more names")


def main() -> None:
    """Read the corpus, write the poison, say how much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a caption file")
    parser.add_argument("--names", type=Path, required=True, help="JSON lines with a field `toxic`, or a name a line")
    parser.add_argument("--share", type=float, default=0.01, help="poison per caption of the corpus")
    parser.add_argument("--before", nargs="+", default=list(BEFORE), help="words that make a thing harmless")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="by default poison.jsonl beside the corpus")
    arguments = parser.parse_args()
    captions = [text for _, text in read_records(arguments.corpus, Keys()) if text]
    out = arguments.out or arguments.corpus.with_name("poison.jsonl")
    try:
        count = round(arguments.share * len(captions))
        made = poison(captions, read_names(arguments.names), count, arguments.before, arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    if out.exists() and not all(str(identifier).startswith(ID) for identifier, _ in read_records(out, Keys())):
        parser.error(f"{out} holds other captions than poison: name another --out")
    with atomic_path(out) as temporary:
        rows = [json.dumps({"id": f"{ID}{number:05d}", "caption": text}) for number, text in enumerate(made)]
        temporary.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    print(f"{len(made)} poisoned captions for {len(captions)} of the corpus: {out}")


if __name__ == "__main__":
    main()
