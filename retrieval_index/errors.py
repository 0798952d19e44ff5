"""The one exception for mistakes that a user of the index can mend; every other exception is a defect."""

from __future__ import annotations

from retrieval_index.visible_text import visible, visible_lines


class RetrievalError(Exception):
    """A mistake of the user, as one message: what is wrong, what was given, what is allowed, how to change it.

    The message is for the terminal: control characters of what was given are shown as escapes.

    Args:
        problem: one sentence that says what is wrong.
        given: the value that was given, where there is one.
        allowed: what would have been accepted.
        remedy: what to do, best a command or an option that can be pasted.
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
        labelled = [("Given", self.given), ("Allowed", self.allowed), ("To change it", self.remedy)]
        sentences = [visible_lines(self.problem)]
        sentences += [f"{label}: {visible(value)}" for label, value in labelled if value is not None]
        return " ".join(text if text.rstrip().endswith((".", "!", "?")) else text.rstrip() + "." for text in sentences)
