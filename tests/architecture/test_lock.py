"""pyproject.toml, uv.lock and constraints.txt say the same; `make lock` brings them together again."""

import re
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED: list[dict[str, Any]] = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
SLMFORGE = next(package for package in LOCKED if package["name"] == "slmforge")
TORCH_AND_ITS_DRIVERS = re.compile(r"torch|triton|nvidia-.*|cuda-.*")

Wanted = set[tuple[str, frozenset[str]]]


def wanted(requirements: list[str]) -> Wanted:
    parsed = map(Requirement, requirements)
    return {(item.name, frozenset(map(str, item.specifier))) for item in parsed if item.name != "slmforge"}


def locked(requirements: list[dict[str, Any]]) -> Wanted:
    return {
        (item["name"], frozenset(filter(None, item.get("specifier", "").split(","))))
        for item in requirements
        if item["name"] != "slmforge"
    }


def test_the_lock_is_made_from_these_dependencies() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    declared = wanted([*PROJECT["project"]["dependencies"], *(item for extra in extras.values() for item in extra)])
    assert locked(SLMFORGE["metadata"]["requires-dist"]) == declared


def test_the_lock_is_made_from_these_groups() -> None:
    for name, members in PROJECT["dependency-groups"].items():
        if name != "dev":  # made of the others
            assert locked(SLMFORGE["metadata"]["requires-dev"][name]) == wanted(members)


def test_the_constraints_are_the_lock_without_torch() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = {line.partition(" ;")[0] for line in lines if not line.startswith("#")}
    pinned = {f"{package['name']}=={package['version']}" for package in LOCKED if package is not SLMFORGE}
    assert constraints == {pin for pin in pinned if not TORCH_AND_ITS_DRIVERS.fullmatch(pin.partition("==")[0])}


def test_make_and_uv_install_the_same_torch() -> None:
    script = (ROOT / "scripts" / "install").read_text(encoding="utf-8")
    [torch] = [package["version"] for package in LOCKED if package["name"] == "torch"]
    assert f"\ntorch_version={torch}\n" in script


def test_the_lock_names_only_the_public_index() -> None:
    addresses = re.findall(r"\b\w+://([^/\"]+)", (ROOT / "uv.lock").read_text(encoding="utf-8"))
    assert set(addresses) == {"pypi.org", "files.pythonhosted.org"}
