"""The one exception for mistakes that a user can mend.

A command prints its message and exits with code 1; every other exception is a defect and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user, as one message: what is wrong, what was given, what is allowed, how to change it.

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
        sentences = [_sentence(self.problem)]
        if self.given is not None:
            sentences.append(_sentence(f"Given: {self.given}"))
        if self.allowed is not None:
            sentences.append(_sentence(f"Allowed: {self.allowed}"))
        if self.remedy is not None:
            sentences.append(_sentence(f"To change it: {self.remedy}"))
        return " ".join(sentences)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip from a data worker's process, keyword arguments included."""
        return _rebuild, (self.problem, self.given, self.allowed, self.remedy)


def _rebuild(problem: str, given: object, allowed: object, remedy: str | None) -> UserError:
    return UserError(problem, given=given, allowed=allowed, remedy=remedy)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else text + "."
