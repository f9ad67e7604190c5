import io

import pytest

from slmforge.clients.answers import Dataset, Evaluation, Experiment
from slmforge.clients.display import Display

from .conftest import dataset, evaluation, experiment


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(screen: io.StringIO) -> Display:
    return Display(screen)


def test_the_comparison_shows_each_metric_with_its_interval_and_verdict(display: Display, screen: io.StringIO) -> None:
    metrics = {
        "macro_f1": {"base": 0.05, "tuned": 0.9, "difference": 0.85, "interval": [0.8, 0.9], "verdict": "better"},
        "perplexity": {"base": 812.3, "tuned": 2.5, "difference": -809.8, "interval": None, "verdict": "worse"},
        "accuracy": {"base": None, "tuned": 0.9, "difference": None, "interval": None, "verdict": "unknown"},
    }
    display.comparison(Evaluation.model_validate(evaluation(rows=1500, metrics=metrics)))
    lines = [[cell.strip() for cell in line.split("│")][1:-1] for line in screen.getvalue().splitlines() if "│" in line]
    assert "1,500 held-out rows" in screen.getvalue()
    assert lines == [
        ["macro f1", "0.050", "0.900", "+0.850", "+0.800 … +0.900", "better"],
        ["perplexity", "812.3", "2.500", "-809.8", "–", "worse"],
        ["accuracy", "–", "0.900", "–", "–", "unknown"],
    ]


def test_no_markup_and_no_control_character_of_the_data_is_obeyed(display: Display, screen: io.StringIO) -> None:
    sample = {
        "prompt": "a [red]b[/red]\x1b]0;owned\x07",
        "expected": "x",
        "base": "\x9b31m",
        "tuned": "y\nz" + "w" * 500,
    }
    display.comparison(Evaluation.model_validate(evaluation(sample_outputs=[sample])))
    display.say("\x1b[2J")
    display.note("error", "[/nonsense]\x07")
    shown = screen.getvalue()
    assert "a [red]b[/red]" in shown
    assert "[/nonsense]" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
    assert "…" in shown


def test_what_the_analysis_found_is_told(display: Display, screen: io.StringIO) -> None:
    issue = {"row": 17, "line": 19, "reason": "The label is empty.", "remedy": "Give the row a label."}
    finding = {"severity": "warning", "message": "2 rows repeat an earlier one.", "remedy": "Remove the repeats."}
    profile = {
        "labels": {"number": 8, "counts": {f"queue{n}": 1000 + n for n in range(8)}},
        "prompt_characters": {"p50": 80, "p95": 1160},
        "findings": [finding],
    }
    display.dataset(Dataset.model_validate(dataset(invalid_rows=9, issues=[issue] * 9, profile=profile)))
    shown = screen.getvalue()
    assert "tickets.csv: 60 rows of classification (CSV; message is the text)" in shown
    assert "8 labels: queue0 1,000" in shown
    assert "half have up to 80 characters, 95 of 100 up to 1,160" in shown
    assert "2 rows repeat an earlier one. Remove the repeats." in shown
    assert shown.count("line 19: The label is empty.") == 3
    assert "9 rows in all cannot be used" in shown


def test_settings_and_held_out_part_are_told_before_it_begins(display: Display, screen: io.StringIO) -> None:
    display.experiment(Experiment.model_validate(experiment()))
    assert "method=full num_epochs=1\n" in screen.getvalue()
    assert "10% of the training rows are kept out of training" in screen.getvalue()


def test_where_things_lie_is_told_as_a_path_when_they_are_here(display: Display, screen: io.StringIO) -> None:
    made = {"model": "file:///data/blobs/model", "adapter": "s3://bucket/adapter"}
    display.artifacts(Experiment.model_validate(experiment(artifacts=made)))
    assert screen.getvalue().splitlines() == ["model: /data/blobs/model", "adapter: s3://bucket/adapter"]


def test_outside_a_terminal_a_bar_is_a_line_for_each_tenth(display: Display, screen: io.StringIO) -> None:
    with display.bar() as bar:
        bar.update("waiting", 0, None)
        for done in range(101):
            bar.update("training", done, 100, f"{done}/100", "loss 1.0")
    lines = screen.getvalue().splitlines()
    assert lines[:2] == ["waiting", "training  0/100  loss 1.0"]
    assert len(lines) == 12


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_a_bar_shows_its_details_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Terminal()
    with Display(screen).bar() as bar:
        bar.update("training", 5, 10, "5/10 steps  0:07 left", "loss 1.250")
    shown = screen.getvalue()
    assert "━" in shown
    assert "5/10 steps  0:07 left" in shown
    assert "loss 1.250" in shown
