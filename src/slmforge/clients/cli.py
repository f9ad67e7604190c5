"""The command line: it reads options, calls one function and turns what comes back into an exit code.

0 done · 1 failed or cancelled · 2 asked for wrongly · 130 stopped. Commands import what they need when they are
called, so that `slmforge --help` answers at once.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from slmforge import __version__
from slmforge.clients.errors import ClientError

STOPPED = 130

app = typer.Typer(
    help="From a file of your own data to a small language model that is measurably better on it.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def main() -> None:
    """The entry point of the `slmforge` command."""
    app()


def _say_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    data: Annotated[Path | None, typer.Option(help="Folder of the embedded database and storage.")] = None,
    no_ui: Annotated[bool, typer.Option("--no-ui", help="API and worker only, as it is today anyway.")] = False,
) -> None:
    """Run the API and a worker until Ctrl-C."""
    del no_ui
    with _plain_endings():
        from slmforge.clients.server import require_server  # noqa: PLC0415  # start-up time

        require_server()
    folder = ["--data", str(data)] if data else []
    command = [sys.executable, "-m", "slmforge.control", "--host", host, "--port", str(port), *folder]
    os.execv(sys.executable, command)  # noqa: S606  # it takes our place: signals reach it directly


@app.command()
def run(
    train: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="CSV, JSON or JSONL to learn from.")],
    eval_: Annotated[
        Path | None, typer.Option("--eval", exists=True, dir_okay=False, help="Held-out rows to compare on.")
    ] = None,
    base: Annotated[str, typer.Option(help="A name of the catalogue, a hub id, or a folder.")] = "scratch-1m",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A training setting; repeatable.")
    ] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="FIELD=COLUMN", help="Which column is which; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The experiment's name; the file's by default.")] = None,
    server: Annotated[
        str | None,
        typer.Option(envvar="SLMFORGE_SERVER", help="Its address; without one, a server here is used or started."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder of a server here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, progress on stderr.")] = False,
) -> None:
    """Train a model on a file and compare it with its base."""
    settings = {key: _value(text) for key, text in _pairs("--set", set_)}
    mapping = dict(_pairs("--map", map_))
    with _plain_endings():
        from slmforge.clients.flow import Job  # noqa: PLC0415  # start-up time
        from slmforge.clients.run import run as run_and_show  # noqa: PLC0415  # start-up time

        job = Job(train, eval_, _base(base), settings, mapping, name or train.stem)
        _end_with(run_and_show(job, server=server, data=data and data.absolute(), as_json=as_json))


@app.command()
def demo(
    stay: Annotated[
        bool | None, typer.Option("--stay/--no-stay", help="Keep the API up until Ctrl-C. Default: in a terminal.")
    ] = None,
) -> None:
    """Show it all once, on the project's own support tickets."""
    with _plain_endings():
        from slmforge.clients.demo import demo as show_it_all  # noqa: PLC0415  # start-up time

        _end_with(show_it_all(stay=sys.stdout.isatty() if stay is None else stay))


@app.command()
def doctor() -> None:
    """Show the settings in force, secrets masked."""
    os.execv(sys.executable, [sys.executable, "-m", "slmforge.control.doctor"])  # noqa: S606  # see `up`


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(f"slmforge {__version__}")


@contextmanager
def _plain_endings() -> Iterator[None]:
    """Every way to end that is not a bug, as one line and an exit code. SIGTERM ends us as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except ClientError as error:
        typer.echo(f"slmforge: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("slmforge: stopped", err=True)
        raise typer.Exit(STOPPED) from None


def _end_with(problem: str | None) -> None:
    if problem is not None:
        raise ClientError(problem)


def _pairs(option: str, given: list[str] | None) -> Iterator[tuple[str, str]]:
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not of the form key=value, such as num_epochs=3.", param_hint=option)
        yield key, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _base(named: str) -> str:
    """A folder that exists is named in full: the server may stand in another one."""
    return str(Path(named).absolute()) if Path(named).is_dir() else named
