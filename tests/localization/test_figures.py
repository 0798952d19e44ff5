"""Figures: a picture that is one, and beside it the numbers that it shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tga.localization.figures import draw_activation, draw_attention, draw_cosines, draw_windows, write_rows

LAYERS = range(1, 5)
WINDOWS = [
    {"condition": "plain", "first": None, "last": None, "refused": 0.9, "low": 0.8, "high": 0.95, "n": 40},
    *({"condition": f"window_{a}_{a + 1}", "first": a, "last": a + 1, "refused": 0.2 * a, "low": 0.1, "high": 0.9,
       "n": 40} for a in (1, 2, 3)),
]  # fmt: skip


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def pink(path: Path) -> int:
    """Pixels of the band's colour on white."""
    found = pixels(path).astype(int)
    return int(((found[..., 0] > 240) & (abs(found[..., 1] - 223) < 12) & (abs(found[..., 2] - 229) < 12)).sum())


def blue(path: Path) -> int:
    """Pixels of the benign prompts' colour."""
    return int((pixels(path) == (0x2F, 0x6F, 0xB5)).all(axis=-1).sum())


def test_activation_and_attention(tmp_path: Path) -> None:
    rows = [{"layer": at, "toxic": at / 4, "benign": 0.1, "activated": 0.2} for at in LAYERS]
    draw_activation(tmp_path, rows, (2, 3))
    assert rows_of(tmp_path / "activation.jsonl") == rows and pink(tmp_path / "activation.png") > 10_000
    draw_activation(tmp_path, [{**row, "benign": None} for row in rows], None)
    assert pink(tmp_path / "activation.png") < 500, "the edges of the bars alone"
    rows = [{"layer": at, "mean": at / 9, "std": 0.2, "even": 0.15, "n": 3} for at in LAYERS]
    draw_attention(tmp_path, rows, (2, 3))
    assert rows_of(tmp_path / "figure2.jsonl") == rows and pink(tmp_path / "figure2.png") > 10_000


def test_windows(tmp_path: Path) -> None:
    draw_windows(tmp_path, "figure3", WINDOWS, (2, 2), title="DSR", plain="untouched")
    assert rows_of(tmp_path / "figure3.jsonl") == [{"set": "toxic", **row} for row in WINDOWS]
    assert blue(tmp_path / "figure3.png") == 0
    draw_windows(tmp_path, "figure5", WINDOWS, (2, 2), title="DSR", plain="untouched", benign=WINDOWS[:2])
    assert rows_of(tmp_path / "figure5.jsonl")[4:] == [{"set": "benign", **row} for row in WINDOWS[:2]]
    assert blue(tmp_path / "figure5.png") > 100


def test_cosines_with_and_without_a_retriever(tmp_path: Path) -> None:
    keys = ("matched", "mismatched", "centred_matched", "centred_mismatched")
    rows = [{"layer": at, **dict.fromkeys(keys, at / 10)} for at in range(5)]
    draw_cosines(tmp_path, rows, (2, 3), None)
    assert rows_of(tmp_path / "figure4.jsonl") == rows
    without = pixels(tmp_path / "figure4.png")
    draw_cosines(tmp_path, rows, (2, 3), {"matched": 0.35, "mismatched": 0.02})
    assert rows_of(tmp_path / "figure4.jsonl")[-1] == {"layer": None, "matched": 0.35, "mismatched": 0.02}
    with_line = pixels(tmp_path / "figure4.png")
    assert with_line.shape != without.shape or (with_line != without).any()


def test_no_half_written_and_no_invalid_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "rows.jsonl", [{"a": 1.0}, {"a": float("nan")}])
    assert list(tmp_path.iterdir()) == []
