import math
import random

import numpy as np
import pytest

from slmforge.training.scorers import exact_match, macro_f1, mean, normalise, perplexity, token_f1


def test_accuracy_is_the_mean_of_zeros_and_ones() -> None:
    assert mean([1.0, 0.0, 1.0, 1.0]).value == 0.75


def test_perplexity_weighs_tokens_and_not_rows() -> None:
    metric = perplexity(np.array([9 * math.log(2), math.log(8)]), np.array([9.0, 1.0]))
    assert metric.value == pytest.approx(math.exp((9 * math.log(2) + math.log(8)) / 10))


def test_macro_f1_of_a_case_worked_by_hand() -> None:
    expected = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "a", "a"]
    # a: 2 right, named 3 + 4; b: 1 right, named 2 + 2; c: none right
    assert macro_f1(expected, predicted).value == pytest.approx((4 / 7 + 2 / 4 + 0) / 3)


def test_macro_f1_counts_a_label_that_was_only_predicted() -> None:
    assert macro_f1(["a", "a"], ["a", "z"]).value == pytest.approx((2 / 3 + 0) / 2)


def test_macro_f1_of_a_draw_is_that_of_its_rows() -> None:
    draw = random.Random(0)
    expected = draw.choices("abcd", k=50)
    predicted = draw.choices("abce", k=50)
    metric = macro_f1(expected, predicted)
    times = np.zeros((1, 50))
    picked = draw.choices(range(10), k=50)
    for row in picked:
        times[0, row] += 1
    again = macro_f1([expected[row] for row in picked], [predicted[row] for row in picked])
    assert metric.of_sums(times @ metric.terms_RC)[0] == pytest.approx(again.value)


@pytest.mark.parametrize(
    ("expected", "answer"),
    [("The Eiffel Tower.", "eiffel  tower"), ("42", " 42 "), ("ﬁne", "Fine!"), ("-", "-"), ("", "")],
)
def test_texts_that_say_the_same_match(expected: str, answer: str) -> None:
    assert exact_match(expected, answer) == 1.0
    assert token_f1(expected, answer) == 1.0


@pytest.mark.parametrize(("expected", "answer"), [("42", "43"), ("-", "+"), ("yes", ""), ("theme", "me")])
def test_texts_that_say_something_else_do_not_match(expected: str, answer: str) -> None:
    assert exact_match(expected, answer) == 0.0
    assert token_f1(expected, answer) == 0.0


def test_token_f1_counts_shared_words_with_their_repeats() -> None:
    # shared: lazy, dog; expected has 4 words, the answer 3
    assert token_f1("quick lazy dog dog", "lazy dog cat") == pytest.approx(2 * 2 / (4 + 3))


def test_an_article_alone_is_no_empty_answer() -> None:
    assert normalise("A") == "a"
    assert exact_match("A", "B") == 0.0
