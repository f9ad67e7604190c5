"""Scorers: what an answer is worth, and how the rows' worth becomes one figure. Pure functions.

A `Metric` is a figure that depends on its rows only through sums over them. That is what lets `bootstrap.py` draw the
rows again thousands of times without scoring one of them again. Called by `evaluate.py`.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Metric:
    """`of_sums` maps sums over rows, shape (S, C), to S values; `terms_RC` holds what each of R rows adds to them."""

    terms_RC: Floats
    of_sums: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The figure over all the rows."""
        return float(self.of_sums(self.terms_RC.sum(0, keepdims=True))[0])


def mean(values: Sequence[float] | Floats) -> Metric:
    """The mean of one value a row: accuracy of zeros and ones, mean token F1 …"""
    values_R = np.asarray(values, dtype=np.float64)
    return Metric(np.stack([values_R, np.ones_like(values_R)], 1), lambda sums: sums[:, 0] / sums[:, 1])


def perplexity(nll_R: Floats, tokens_R: Floats) -> Metric:
    """exp(summed negative log-likelihood in nats / predicted tokens): every token weighs the same, not every row."""
    return Metric(np.stack([nll_R, tokens_R], 1), lambda sums: np.exp(sums[:, 0] / sums[:, 1]))


def macro_f1(expected: Sequence[str], predicted: Sequence[str]) -> Metric:
    """The mean over labels of each label's F1.

    The labels are those that occur among the expected or the predicted, as in scikit-learn's `f1_score` with
    `average="macro"`; and F1 is averaged, not made from averaged precision and recall (Opitz and Burst 2019, "Macro F1
    and Macro F1").
    """
    labels = sorted({*expected, *predicted})
    number = {label: index for index, label in enumerate(labels)}
    expected_RL = np.eye(len(labels))[[number[label] for label in expected]]
    predicted_RL = np.eye(len(labels))[[number[label] for label in predicted]]
    hits_RL = expected_RL * predicted_RL

    def of_sums(sums: Floats) -> Floats:
        hits, named = sums[:, : len(labels)], sums[:, len(labels) :]
        scores = np.divide(2 * hits, named, out=np.zeros_like(hits), where=named > 0)
        mean_scores: Floats = scores.sum(1) / (named > 0).sum(1)
        return mean_scores

    return Metric(np.concatenate([hits_RL, expected_RL + predicted_RL], 1), of_sums)


def exact_match(expected: str, answer: str) -> float:
    """1.0 if both say the same but for case, punctuation, articles and white space, else 0.0."""
    return float(normalise(expected) == normalise(answer))


def token_f1(expected: str, answer: str) -> float:
    """The harmonic mean of precision and recall over the words that both have in common, repeats counted.

    As in SQuAD (Rajpurkar et al. 2016): words are what white space parts after `normalise`; two empty texts agree.
    """
    wanted, given = normalise(expected).split(), normalise(answer).split()
    if not wanted or not given:
        return float(wanted == given)
    shared = (Counter(wanted) & Counter(given)).total()
    return 2 * shared / (len(wanted) + len(given))


def normalise(text: str) -> str:
    """The text in the form that SQuAD compares: lower case, no punctuation, no English article, single spaces.

    Where nothing but punctuation is there, it is kept: an answer of "-" is not an empty one.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    words = _ARTICLES.sub(" ", text.translate(_PUNCTUATION)).split()
    return " ".join(words or text.split())
