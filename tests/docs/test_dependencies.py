"""Every dependency says why it is there."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")


def test_the_page_gives_a_reason_for_exactly_the_declared_dependencies() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = [PROJECT["dependency-groups"]["test"], PROJECT["dependency-groups"]["lint"]]
    declared = {
        Requirement(line).name for lines in [PROJECT["project"]["dependencies"], *extras, *groups] for line in lines
    }
    rows = re.findall(r"^\| ([a-z][a-z0-9, -]*) \| .+ \|$", PAGE, re.MULTILINE)
    explained = {name for row in rows for name in row.split(", ")} - {"library"}
    assert explained == declared - {"slmforge"}
