"""Budgets and bans on our own source, read as syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
FILES = sorted(path for path in SOURCE.rglob("*.py") if "versions" not in path.parts)  # migrations are generated
LONGEST_FILE_LINES = 300
LONGEST_FUNCTION_LINES = 60

# Each of these turns data into code, or a file name into a shell command.
BANNED_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
BANNED_CALLS = {"eval", "exec", "os.popen", "os.system", "torch.load"}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def violations(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from banned_imports(node.lineno, [alias.name for alias in node.names])
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from banned_imports(node.lineno, names)
        elif isinstance(node, ast.Call):
            yield from banned_calls(node)


def banned_imports(line: int, names: list[str]) -> Iterator[str]:
    for name in names:
        if name.partition(".")[0] in BANNED_MODULES or name in BANNED_CALLS:
            yield f"line {line}: import of {name}"


def banned_calls(call: ast.Call) -> Iterator[str]:
    if ast.unparse(call.func) in BANNED_CALLS:
        yield f"line {call.lineno}: call of {ast.unparse(call.func)}"
    for keyword in call.keywords:
        if keyword.arg == "shell" and ast.unparse(keyword.value) != "False":
            yield f"line {call.lineno}: shell={ast.unparse(keyword.value)}"


@every_file
def test_a_file_is_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE_LINES


@every_file
def test_a_function_fits_on_a_page(path: Path) -> None:
    functions = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION_LINES} == {}


@every_file
def test_nothing_runs_code_that_came_as_data(path: Path) -> None:
    assert list(violations(parsed(path))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from torch import load",
        "torch.load(path)",
        "eval(text)",
        "os.system(command)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_the_ban_sees_what_it_bans(code: str) -> None:
    assert len(list(violations(ast.parse(code)))) == 1


@pytest.mark.parametrize("code", ["model.eval()", "subprocess.run([program])", "safetensors.torch.load_file(path)"])
def test_the_ban_leaves_the_harmless_alone(code: str) -> None:
    assert list(violations(ast.parse(code))) == []


def test_there_is_source_to_look_at() -> None:
    assert len(FILES) > 20
