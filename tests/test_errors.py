"""One message that says what was given, what is allowed and how to change it; it survives pickling."""

from __future__ import annotations

import pickle

from tga.errors import UserError


def test_the_message_holds_all_parts_in_order() -> None:
    error = UserError("Unknown layer", given=[9], allowed="0 to 6", remedy="alignment.layers=[1]")
    expected = "Unknown layer. Given: [9]. Allowed: 0 to 6. To change it: alignment.layers=[1]."
    assert str(error) == expected
    assert str(pickle.loads(pickle.dumps(error))) == expected


def test_parts_that_are_missing_leave_no_trace() -> None:
    assert str(UserError("The corpus has no captions.")) == "The corpus has no captions."
    assert str(UserError("Bad weight", given=0)) == "Bad weight. Given: 0."
