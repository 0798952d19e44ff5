"""The one exception for mistakes that a user can mend.

A command prints its message and exits with code 1; every other exception is a defect and keeps its traceback.
"""

from __future__ import annotations

from retrieval_index.visible_text import visible, visible_lines


class UserError(Exception):
    """A mistake of the user, as one message: what is wrong, what was given, what is allowed, how to change it.

    The message is for the terminal: control characters of what was given are shown as escapes.

    Args:
        problem: one sentence that says what is wrong.
        given: the value that was given, where there is one.
        allowed: what would have been accepted.
        remedy: what to do, best a command or an override that can be pasted.
    """

    def __init__(
        self, problem: str, *, given: object = None, allowed: object = None, remedy: str | None = None
    ) -> None:
        self.problem = problem
        self.given = given
        self.allowed = allowed
        self.remedy = remedy
        super().__init__(problem, given, allowed, remedy)

    def __str__(self) -> str:
        sentences = [_sentence(visible_lines(self.problem))]
        if self.given is not None:
            sentences.append(_sentence(f"Given: {visible(self.given)}"))
        if self.allowed is not None:
            sentences.append(_sentence(f"Allowed: {visible(self.allowed)}"))
        if self.remedy is not None:
            sentences.append(_sentence(f"To change it: {visible_lines(self.remedy)}"))
        return " ".join(sentences)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a data worker's process, keyword arguments included."""
        return _rebuild, (self.problem, self.given, self.allowed, self.remedy)


def _rebuild(problem: str, given: object, allowed: object, remedy: str | None) -> UserError:
    return UserError(problem, given=given, allowed=allowed, remedy=remedy)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."
