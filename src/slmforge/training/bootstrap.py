"""The paired bootstrap: is the tuned model better on these rows, or would other rows have said otherwise?

Rows are drawn with replacement, the same ones for both models, and the metric is taken of each draw (Efron and
Tibshirani 1993, chapter 13; Koehn 2004 for comparing two systems on one test set). Called by `evaluate.py`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slmforge.training.scorers import Floats, Metric

Verdict = Literal["better", "worse", "not distinguishable"]

CONFIDENCE = 0.95
# Were all of five rows to change in one direction, a sign test would still give p = 2 / 2^5 > 0.05.
FEWEST_ROWS = 6
_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of both models on the same rows; intervals are (low, high) at 95%."""

    base: float
    tuned: float
    difference: float
    interval: tuple[float, float]
    base_interval: tuple[float, float]
    tuned_interval: tuple[float, float]
    verdict: Verdict


def compare(base: Metric, tuned: Metric, *, higher_is_better: bool, samples: int, seed: int) -> Comparison:
    """Compare by the percentile interval of (tuned - base) over `samples` draws of the rows.

    The verdict is `not distinguishable` where that interval holds zero, and with fewer than `FEWEST_ROWS` rows.
    Row i of both metrics must be the same row; raises `ValueError` when their numbers differ.
    """
    rows = len(base.terms_RC)
    if rows != len(tuned.terms_RC):
        raise ValueError(f"the base has {rows} rows and the tuned model {len(tuned.terms_RC)}")
    base_S, tuned_S = _resample(base, tuned, samples, np.random.default_rng(seed))
    low, high = _interval(tuned_S - base_S)
    verdict: Verdict = "not distinguishable"
    if rows >= FEWEST_ROWS and (low > 0 or high < 0):
        verdict = "better" if (low > 0) == higher_is_better else "worse"
    return Comparison(
        base=base.value,
        tuned=tuned.value,
        difference=tuned.value - base.value,
        interval=(low, high),
        base_interval=_interval(base_S),
        tuned_interval=_interval(tuned_S),
        verdict=verdict,
    )


def _resample(base: Metric, tuned: Metric, samples: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """Both metrics of each draw, shape (samples,)."""
    rows = len(base.terms_RC)
    base_S, tuned_S = np.empty(samples), np.empty(samples)
    at_once = max(1, _DRAWN_AT_ONCE // rows)
    for start in range(0, samples, at_once):
        part = slice(start, min(start + at_once, samples))
        times_SR = _times_drawn(part.stop - part.start, rows, random)
        base_S[part] = base.of_sums(times_SR @ base.terms_RC)
        tuned_S[part] = tuned.of_sums(times_SR @ tuned.terms_RC)
    return base_S, tuned_S


def _times_drawn(samples: int, rows: int, random: np.random.Generator) -> Floats:
    """How often each row is in each draw of `rows` rows with replacement, shape (samples, rows)."""
    drawn_SR: NDArray[np.int64] = random.integers(0, rows, (samples, rows)) + np.arange(samples)[:, None] * rows
    return np.bincount(drawn_SR.ravel(), minlength=samples * rows).reshape(samples, rows).astype(np.float64)


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
