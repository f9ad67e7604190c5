import os
import signal
from collections.abc import Iterator

import pytest

from slmforge.training.stopping import Interrupted, StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    request = StopRequest()
    request.install()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_interrupts_at_once(stop: StopRequest) -> None:
    with pytest.raises(Interrupted):
        ask()
    assert stop.asked


def test_a_deferred_request_waits_to_be_looked_at(stop: StopRequest) -> None:
    reached = []

    def work() -> None:
        with stop.deferred():
            ask()
            reached.append("after the signal")
            stop.check()
            reached.append("after the look")

    with pytest.raises(Interrupted):
        work()
    assert reached == ["after the signal"]


def test_a_deferred_request_that_nobody_looked_at_interrupts_on_the_way_out(stop: StopRequest) -> None:
    reached = []

    def work() -> None:
        with stop.deferred():
            with stop.deferred():
                ask()
            reached.append("still deferred outside")

    with pytest.raises(Interrupted):
        work()
    assert reached == ["still deferred outside"]


def test_a_second_request_does_not_disturb_the_way_out(stop: StopRequest) -> None:
    with pytest.raises(Interrupted):
        ask()
    ask()
    assert stop.asked
