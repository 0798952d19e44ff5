"""What belongs to each row of a batch while a model generates: rows that have ended leave the batch."""

from __future__ import annotations

from torch import Tensor


class Rows:
    """One entry of a tensor for each row of a batch, `[batch, ...]`, as long as the batch lasts."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def keep(self, rows: Tensor) -> None:
        """Say which rows stay, as numbers [kept] int64 of the present ones, when the others leave the batch."""
        self._values = self._values[rows.to(self._values.device)]

    def of(self, hidden: Tensor) -> Tensor:
        """The entries on the device of hidden states [batch, tokens, width]; ValueError for another batch."""
        if len(hidden) != len(self._values):
            raise ValueError(f"a batch of {len(hidden)} rows where {len(self._values)} were announced")
        return self._values.to(hidden.device)
