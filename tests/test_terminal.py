"""Nothing that comes from data moves a cursor, sets a title or a colour, or is taken for markup."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from retrieval_index.visible_text import visible
from tests.tiny import tiny_picture
from tests.tiny_clip import write_tiny_clip
from tga.cli import build_index, doctor, own_processes, verify_data
from tga.evaluation.report import Table, markdown, print_tables
from tga.terminal import literal, say

ROOT = Path(__file__).resolve().parents[1]
ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\u2066\r\x08"
MARKUP = "[red]a[/red] [link=http://example.org]b[/link] :smile: [/] \\"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
CHAT = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run(main: Callable[[], None], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_captions_and_ids_of_a_query(call, tmp_path: Path) -> None:
    captions = [f"{ESCAPES}{MARKUP}", "a dog\nid\ncaption", "a <script> cat"]
    rows = [{"id": f"{ESCAPES}{number}", "caption": caption} for number, caption in enumerate(captions)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_picture().save("p.png")
    encoder = f"encoder.name={write_tiny_clip(tmp_path / 'clip')}"
    index = [encoder, "encoder.device=cpu", "out=index", "k=3"]
    code, out, err = call(build_index.main, *index, "captions=a.jsonl")
    assert code == 0 and not OBEYED.search(out)
    code, out, err = call(build_index.main, *index, "query=p.png")
    assert code == 0 and not OBEYED.search(out + err)
    assert "\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202e\\u2066" in out and MARKUP in out
    assert sum("cat" in line or "dog" in line or "smile" in line for line in out.splitlines()) == 3
    stored = json.loads(Path("index/summary.json").read_text())
    assert stored["captions"] == 3


def test_ids_and_paths_of_a_verification(call) -> None:
    name = f"{ESCAPES}[red].png"
    Path("images").mkdir()
    Path("d.json").write_text(json.dumps([{"id": f"{ESCAPES}[/]", "image": name, "conversations": CHAT}]))
    code, out, err = call(verify_data.main, "data.json=d.json", "data.image_root=images", "workers=0", "out=b.jsonl")
    # The progress bar is ours: it returns to the beginning of its line.
    assert code == 1 and not OBEYED.search(out) and not OBEYED.search(err.replace("\r", "").replace("\x1b[A", ""))
    assert visible(name) in out
    assert json.loads(Path("b.jsonl").read_text())["id"] == f"{ESCAPES}[/]", "the list for programs has the id itself"
    code, out, err = call(doctor.main, "data.json=d.json", "data.image_root=images")
    assert code == 1 and not OBEYED.search(out + err) and visible(name) in out


def test_what_another_process_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Ended:
        returncode = 3

        def poll(self) -> int:
            return 3

    (tmp_path / "1.log").write_text(f"first\n{ESCAPES}{MARKUP}\nlast\n")
    own_processes._tell_who_failed([Ended()], str(tmp_path), 0.0)  # type: ignore[list-item]
    shown = capsys.readouterr().err
    assert not OBEYED.search(shown) and "\\x1b[2J" in shown and MARKUP in shown and "\nlast\n" in shown


def test_tables_and_notes_of_an_evaluation() -> None:
    shown = Console(file=StringIO(), width=400, force_terminal=True, color_system=None)
    table = Table(f"T {ESCAPES}{MARKUP}", ["metric", f"a{ESCAPES}[b]"], [["dsr", f"0.5 {ESCAPES}{MARKUP}\nx"]])
    print_tables([table], [f"note {ESCAPES}{MARKUP}"], shown)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.file.getvalue())  # rich's own bold and italic
    assert not OBEYED.search(text) and text.count(MARKUP) == 3 and text.count(visible(ESCAPES)) == 4


def test_markdown_makes_no_tag_link_or_picture() -> None:
    evil = "<script>alert(1)</script> ![x](http://example.org/x.png) [y][z] \\<b> a|b \x1b[2J\nnext"
    text = markdown(f"A {evil}", [Table(evil, ["a", evil], [["x", evil]])], [evil, "n < 3"])
    assert not re.search(r"(?<!\\)(\\\\)*<(?=[a-z/])", text) and not re.search(r"(?<!\\)\]\(|(?<!\\)\]\[", text)
    assert not OBEYED.search(text) and len(text.splitlines()) == 10 and "- n < 3" in text


def test_one_line_for_each_argument(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\nb", Path("c\x1b"), 3)
    assert capsys.readouterr().out == "a\\nb\nc\\x1b\n3\n"
    assert literal(MARKUP).plain == MARKUP and literal(MARKUP).spans == []


def test_the_product_prints_through_one_place() -> None:
    """Of `print` only what writes a file is left, and rich gets no text that was put together in place."""
    found = []
    for path in (file for folder in ("tga", "retrieval_index") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            made = any(isinstance(argument, ast.JoinedStr) for argument in node.args)
            if name == "print" or (name.endswith(("console.print", "add_column", "bar.write")) and made):
                found.append(f"{path.relative_to(ROOT)}: {ast.unparse(node)[:60]}")
    places = sorted({entry.partition(":")[0] for entry in found})
    assert places == ["tga/cli/compare.py", "tga/cli/locate_job.py", "tga/terminal.py"], found
