import numpy as np
import pytest

from slmforge.training.bootstrap import Comparison, compare
from slmforge.training.scorers import Metric, macro_f1, mean, perplexity


def _compare(base: Metric, tuned: Metric, *, higher_is_better: bool = True, seed: int = 0) -> Comparison:
    return compare(base, tuned, higher_is_better=higher_is_better, samples=1000, seed=seed)


def test_a_clear_gain_is_better_and_its_mirror_worse() -> None:
    low, high = mean([0.0] * 60 + [1.0] * 40), mean([0.0] * 10 + [1.0] * 90)
    gain = _compare(low, high)
    assert gain.verdict == "better"
    assert gain.difference == pytest.approx(0.5)
    assert 0.35 < gain.interval[0] < 0.5 < gain.interval[1] < 0.65
    assert _compare(high, low).verdict == "worse"


def test_a_lower_perplexity_is_better() -> None:
    tokens = np.full(50, 10.0)
    nll = np.random.default_rng(0).uniform(10, 20, 50)
    fell = _compare(perplexity(nll, tokens), perplexity(nll * 0.8, tokens), higher_is_better=False)
    assert fell.difference < 0
    assert fell.verdict == "better"


def test_the_same_answers_are_not_distinguishable() -> None:
    same = mean([0.0, 1.0] * 20)
    found = _compare(same, same)
    assert found.interval == (0.0, 0.0)
    assert found.verdict == "not distinguishable"


def test_rows_are_paired_so_a_small_steady_gain_shows() -> None:
    base = np.random.default_rng(1).normal(0, 10, 200)
    assert _compare(mean(base), mean(base + 0.1)).verdict == "better"


def test_a_handful_of_rows_proves_nothing() -> None:
    assert _compare(mean([0.0] * 5), mean([1.0] * 5)).verdict == "not distinguishable"
    assert _compare(mean([0.0] * 6), mean([1.0] * 6)).verdict == "better"


def test_the_seed_decides_the_interval() -> None:
    draw = np.random.default_rng(2)
    base, tuned = mean(draw.normal(0, 1, 80)), mean(draw.normal(0.2, 1, 80))
    assert _compare(base, tuned, seed=5) == _compare(base, tuned, seed=5)
    assert _compare(base, tuned, seed=5).interval != _compare(base, tuned, seed=6).interval


def test_macro_f1_is_taken_of_every_draw() -> None:
    expected = list("aabbccdd") * 10
    found = _compare(macro_f1(expected, ["a"] * 80), macro_f1(expected, expected))
    assert found.verdict == "better"
    assert found.tuned_interval == (1.0, 1.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        base = draw.random(100) < 0.5
        tuned = np.where(draw.random(100) < 0.3, draw.random(100) < 0.8, base)  # the true difference is 0.09
        found = _compare(mean(base.astype(float)), mean(tuned.astype(float)), seed=int(draw.integers(1000)))
        covered += found.interval[0] <= 0.09 <= found.interval[1]
    assert 0.89 <= covered / 200 <= 0.99


def test_many_rows_are_drawn_in_parts() -> None:
    draw = np.random.default_rng(4)
    rows = mean(draw.random(50_000))
    found = compare(rows, rows, higher_is_better=True, samples=100, seed=0)
    assert found.base_interval[0] < rows.value < found.base_interval[1]


def test_metrics_of_different_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows and the tuned model 3"):
        _compare(mean([1.0, 0.0]), mean([1.0, 0.0, 1.0]))
