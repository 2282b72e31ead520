"""README and docs: every link leads somewhere, every command exists, every Python block is valid and imports what there is."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
OURS = ("cm3", "vqgan", "retrieval", "sft")
COMMANDS = ("make", "cm3", "accelerate", "torchrun", "python")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.splitlines():
                if line.strip() and not line.startswith("#"):
                    yield page.name, line.split("#")[0].strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_are_closed(page: Path) -> None:
    assert page.read_text("utf-8").count("```") % 2 == 0


def test_every_cm3_command_of_the_docs_exists(command) -> None:
    asked = set()
    for _, line in commands():
        words = shlex.split(line)
        assert words[0] in COMMANDS, line
        if words[0] == "cm3":
            group = {"vqgan": 2, "retrieval": 2, "sft": 3 if words[1:3] == ["sft", "data"] else 2}.get(words[1], 1)
            asked.add(tuple(words[1 : 1 + group]))
    assert asked
    for name in sorted(asked):
        command.works(*name, "--help")


def test_every_make_target_of_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page, line in commands():
        if line.startswith("make "):
            asked = [word for word in line.split()[1:] if "=" not in word]
            assert set(asked) <= targets, f"{page}: {line}"


def test_python_blocks_are_valid_and_import_what_there_is() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            for node in ast.walk(ast.parse(block, str(page))):
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in OURS:
                    module = importlib.import_module(str(node.module))
                    missing = [name.name for name in node.names if not hasattr(module, name.name)]
                    assert not missing, f"{page.name}: {node.module} has no {', '.join(missing)}"
