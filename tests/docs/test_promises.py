"""What our pages promise is there: commands and their options, settings, endpoints, links."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from slmforge.control.app import create_app
from slmforge.control.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
ENDPOINT = re.compile(r"\b(?P<method>GET|POST|PUT|PATCH|DELETE) (?P<path>/[^\s`?|]*)")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def shell_commands(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks, continuations joined, without prompt and comment."""
    for fence in FENCE.finditer(page.read_text(encoding="utf-8")):
        if fence["language"] in {"bash", "console", "sh"}:
            lines = fence["body"].replace("\\\n", " ").splitlines()
            yield from filter(None, (line.removeprefix("$ ").partition("#")[0].strip() for line in lines))


@cache
def help_of(*command: str) -> str:
    """What `slmforge … --help` prints. Raises `CalledProcessError` for a command that does not exist."""
    call = [sys.executable, "-c", "from slmforge.clients.cli import main; main()", *command, "--help"]
    plain = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(call, capture_output=True, text=True, check=True, env=plain).stdout


@every_page
def test_every_make_target_on_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {match[1] for line in shell_commands(page) if (match := re.match(r"make ([a-z]+)", line))}
    assert named <= targets


@every_page
def test_every_slmforge_command_on_a_page_exists_with_its_options(page: Path) -> None:
    for line in shell_commands(page):
        words = line.removeprefix(".venv/bin/").removeprefix("uv run ").removeprefix("--no-sync ").split()
        if words[:1] == ["slmforge"]:
            described = help_of(*words[1:2]) if words[1:] and not words[1].startswith("-") else help_of()
            options = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
            assert {option for option in options if option not in described} == set(), line


def test_the_readme_opens_with_the_two_commands() -> None:
    commands = list(shell_commands(ROOT / "README.md"))
    assert commands[:2] == ["make demo", "make test"]


@every_page
def test_every_setting_on_a_page_exists(page: Path) -> None:
    named = set(re.findall(r"\bSLMFORGE_([A-Z_]+[A-Z])\b", page.read_text(encoding="utf-8")))
    named = {setting for setting in named if not setting.startswith("TEST_")}
    assert {setting.lower() for setting in named} <= set(Settings.model_fields)


def test_the_table_of_settings_is_what_the_code_reads() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = []
    for setting, field in Settings.model_fields.items():
        default = "" if field.default == "" else f"`{field.default}`"
        rows.append(f"| `SLMFORGE_{setting.upper()}` | {default} | {field.description} |")
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


def test_the_page_of_endpoints_and_the_served_description_agree(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = {(match["method"], nameless(match["path"])) for match in ENDPOINT.finditer(page)}
    served = {
        (method.upper(), nameless(path))
        for path, operations in create_app(Settings(data=tmp_path)).openapi()["paths"].items()
        for method in operations
    }
    assert described == served


def nameless(path: str) -> str:
    """`/datasets/{id}` and `/datasets/{dataset_id}` are one endpoint."""
    return re.sub(r"\{\w+\}", "{}", path)


@every_page
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, heading = target.partition("#")
        if ":" in path:  # another site
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            assert heading in headings(linked), target


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
