"""The commands in README.md and docs compose: no document names a key, group or option that the configs do not have.

Nothing is run. `PATH`, `RUN` and `DIR` in a document stand for the reader's own values.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.is_file())
COMMANDS = {path.stem for path in (ROOT / "conf").glob("*.yaml")}
FENCE = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks that call a command of ours; a backslash joins a line to the next."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip().startswith("tga-")]


CALLS = [(page.relative_to(ROOT).as_posix(), command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), CALLS, ids=[f"{page}: {command}" for page, command in CALLS])
def test_a_documented_command_composes_and_lacks_nothing(page: str, command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    name = program.removeprefix("tga-").replace("-", "_")
    assert name in COMMANDS, f"{page} calls {program}"
    overrides = [argument for argument in arguments if not argument.startswith("-") and argument != "job"]
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="tga.conf", version_base="1.3"):
        config = compose(name, overrides=overrides)
    assert name == "doctor" or OmegaConf.missing_keys(config) == set()  # the doctor looks at what it is given
    OmegaConf.to_container(config, resolve=True)


def test_commands_are_found_in_blocks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`tga-no`\n```bash\nls\ntga-train a=1 \\\n  b=2\n```\n```python\ntga-no\n```\n```bash\ntga-export\n```\n"
    )
    assert commands(page) == ["tga-train a=1 b=2", "tga-export"]


@pytest.mark.parametrize(
    "name",
    ["build-index.md", "train.md", "evaluate.md", "export.md", "compare.md", "steer.md", "locate.md", "doctor.md"],
)
def test_every_command_has_a_page_that_calls_it(name: str) -> None:
    program = f"tga-{name.removesuffix('.md')}"
    assert any(command.startswith(program) for command in commands(ROOT / "docs" / name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert broken == []


def headings(page: Path) -> set[str]:
    """What a link may say behind `#`, as GitHub makes it of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_a_section_lead_to_a_heading(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    broken = [f"{at}#{name}" for at, name in links if name not in headings(page.parent / at if at else page)]
    assert broken == []
