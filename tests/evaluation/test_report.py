"""Reports: numbers as text, Markdown that stays a table, HTML that is one self-contained file."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tga.evaluation.rates import Interval
from tga.evaluation.report import Table, html_report, interval_text, markdown, models_table, print_tables


def test_texts_of_numbers() -> None:
    assert interval_text(Interval(0.5, 0.25, 0.75, 3), "image_dsr") == "0.500 [0.250, 0.750]"
    assert interval_text(Interval(0.5, None, None, 1), "image_dsr", signed=True) == "+0.500"
    assert interval_text(Interval(61.27, None, None, 1), "train_s") == "61.3"
    assert interval_text(Interval(1833.6, None, None, 1), "peak_rss_mib") == "1834"
    assert interval_text(None, "x") == "-"


def test_models_stand_side_by_side() -> None:
    values = {"a": {"dsr": 0.5, "dsr_low": 0.4, "dsr_high": 0.6}, "b": {"cosine": -0.25}}
    table = models_table(values, ["dsr", "cosine"], "T")
    assert table.columns == ["metric", "a", "b"]
    assert table.rows == [["dsr", "0.500 [0.400, 0.600]", "-"], ["cosine", "-", "-0.250"]]
    assert table.shares == {(0, 1): 0.5}


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table("T", ["a", "b"], [["1"]])


def test_markdown_escapes_bars_and_lines() -> None:
    text = markdown("Title", [Table("T", ["a", "b"], [["x|y", "1\n2"]])], ["note"])
    assert text == "# Title\n\n## T\n\n| a | b |\n| --- | --- |\n| x\\|y | 1 2 |\n\n- note\n"


def test_html_is_escaped_and_self_contained() -> None:
    page = html_report("A & B", [Table("T", ["a", "b"], [["<x>", "0.5"]], {(0, 1): 0.5})], ["n < 3"], "end")

    class Reader(HTMLParser):
        tags: list[str] = []
        texts: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)
            assert not {name for name, _ in attrs} & {"src", "href"}

        def handle_data(self, data: str) -> None:
            self.texts.append(data)

    reader = Reader()
    reader.feed(page)
    assert {"<x>", "A & B", "n < 3", "end"} <= set(reader.texts)
    assert "script" not in reader.tags and reader.tags.count("td") == 2
    assert "width:50.0%" in page


def test_terminal_tables_show_every_cell() -> None:
    stream = io.StringIO()
    print_tables([Table("T", ["method", "dsr"], [["tga", "0.55"]])], ["One seed."], Console(file=stream, width=80))
    assert all(piece in stream.getvalue() for piece in ("method", "dsr", "tga", "0.55", "One seed."))
