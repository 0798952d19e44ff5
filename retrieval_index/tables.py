"""Rows of comma- and tab-separated files."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval_index.errors import RetrievalError

MEND = "mend the file, or captions=PATH of another one"


def table_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its line, fields) of each row: comma-separated with quotes; in a .tsv a quote is a character like any
    other, as captions of the web have them.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    tabs = file.suffix.lower() == ".tsv"
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    with open(file, encoding="utf-8-sig", newline="") as stream:
        rows = csv.reader(stream, **form)
        try:
            for row in rows:
                yield rows.line_num, row
        except UnicodeDecodeError as error:
            raise not_utf8(file, error) from error
        except csv.Error as error:
            given = f"{file} line {rows.line_num}: {error}"
            raise RetrievalError("A caption file is not a table", given=given, remedy=MEND) from error


def not_utf8(file: Path, error: UnicodeDecodeError) -> RetrievalError:
    """The error of a file in another encoding, for the caller to raise."""
    return RetrievalError("A caption file is not UTF-8", given=f"{file}: {error}", remedy=MEND)
