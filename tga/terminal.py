"""What a person reads in the terminal: texts are shown as they are, and nothing in them is obeyed.

Captions, ids, answers and paths come from data. `say` prints them, `literal` is what rich takes of them: neither
control characters nor rich's own markup (`[red]`, `[link=...]`, `:smile:`) mean anything there.
"""

from __future__ import annotations

from typing import TextIO

from rich.text import Text

from retrieval_index.visible_text import visible, visible_lines


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print one line for each argument, on stdout where no `file` is given, at once."""
    print(*map(visible, lines), sep="\n", file=file, flush=True)


def say_lines(text: object, file: TextIO | None = None) -> None:
    """Print a text that has lines of its own."""
    print(visible_lines(text), file=file, flush=True)


def literal(text: object) -> Text:
    """A text on one line for rich."""
    return Text(visible(text))


def literal_lines(text: object) -> Text:
    """A text that has lines of its own for rich."""
    return Text(visible_lines(text))
