import io
import json
from pathlib import Path
from typing import Any

import pytest

from slmforge.clients.display import Display
from slmforge.clients.errors import ApiError, BadUsage
from slmforge.clients.flow import Job, Outcome, run_job
from slmforge.clients.http import Client

from .conftest import Answer, FakeService, dataset, evaluation, experiment

ACCURACY = {"base": 0.5, "tuned": 0.75, "difference": 0.25, "interval": [0.1, 0.4], "verdict": "better"}
LINK = [{"evaluation_id": "eval_1", "status": "created"}]


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    file = tmp_path / "tickets.csv"
    file.write_text("message,label\nlate,delivery\n")
    return Job(train=file, eval=None, base="scratch-1m", settings={"num_epochs": 1}, mapping={}, name="tickets")


@pytest.fixture
def happy(service: FakeService) -> FakeService:
    """A service where all goes well, in a few steps."""
    step = {"stage": "training", "done": 5, "total": 10, "unit": "steps", "seconds_left": 65.4}
    done = experiment(status="completed", evaluations=LINK, artifacts={"model": "file:///data/model"})
    service.on("POST", "/datasets/upload", Answer(dataset(profile_status="created"), 201))
    service.on("GET", "/datasets/ds_1", Answer(dataset(profile_status="running")), Answer(dataset()))
    service.on("POST", "/experiments", Answer(experiment(), 201))
    service.on(
        "GET",
        "/experiments/exp_1",
        Answer(experiment()),
        Answer(experiment(status="running", progress=step)),
        Answer(done),
    )
    for after in (0, 2, 4):
        service.on("GET", f"/experiments/exp_1/events?after={after}", Answer([]))
    events = [
        {"number": 1, "type": "created", "payload": {}},
        {"number": 2, "type": "measured", "payload": {"step": 0, "values": {"held_out_loss": 2.5}}},
    ]
    later = [
        {"number": 3, "type": "measured", "payload": {"step": 5, "values": {"loss": 1.25, "tokens_per_second": 1500}}},
        {"number": 4, "type": "noted", "payload": {"level": "warning", "message": "3 rows were cut."}},
    ]
    service.on("GET", "/experiments/exp_1/events?after=0", Answer([]), Answer(events), Answer([]))
    service.on("GET", "/experiments/exp_1/events?after=2", Answer(later), Answer([]))
    service.on(
        "GET",
        "/evaluations/eval_1",
        Answer(evaluation(status="running", progress={"stage": "scoring the base model", "done": 1, "total": 6})),
        Answer(evaluation(metrics={"accuracy": ACCURACY})),
    )
    return service


def carry_out(client: Client, job: Job, screen: io.StringIO) -> Outcome:
    return run_job(client, job, Display(screen), pause=lambda _seconds: None)


def test_a_job_ends_with_the_object_that_scripts_rely_on(
    client: Client, happy: FakeService, job: Job, screen: io.StringIO
) -> None:
    outcome = carry_out(client, job, screen)
    assert outcome.problem is None
    assert json.loads(json.dumps(outcome.as_json())) == {
        "experiment_id": "exp_1",
        "status": "completed",
        "metrics": {"accuracy": ACCURACY},
        "artifacts": {"model": "file:///data/model"},
    }


def test_the_experiment_is_what_was_asked_for(
    client: Client, happy: FakeService, job: Job, screen: io.StringIO
) -> None:
    carry_out(client, job, screen)
    (created,) = happy.asked_for("POST", "/experiments")
    assert created.json == {
        "name": "tickets",
        "base_model_id": "scratch-1m",
        "training_dataset_id": "ds_1",
        "eval_dataset_id": None,
        "training_config": {"num_epochs": 1},
    }


def test_a_person_sees_how_far_it_is(client: Client, happy: FakeService, job: Job, screen: io.StringIO) -> None:
    carry_out(client, job, screen)
    shown = screen.getvalue()
    assert "training  5/10 steps  1:05 left  loss 1.250 · held-out loss 2.500 · 1,500 tokens/s" in shown
    assert "! 3 rows were cut." in shown
    assert "scoring the base model  1/6" in shown


def test_held_out_rows_of_their_own_are_uploaded_as_such(
    client: Client, happy: FakeService, job: Job, screen: io.StringIO, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.csv"
    held_out.write_text("message,label\nbroken,damage\n")
    happy.on("POST", "/datasets/upload", Answer(dataset(), 201), Answer(dataset(dataset_id="ds_2"), 201))
    carry_out(client, Job(job.train, held_out, job.base, {}, {}, "n"), screen)
    training, evaluating = happy.asked_for("POST", "/datasets/upload")
    assert b"\r\n\r\ntraining\r\n" in training.body
    assert b"\r\n\r\nevaluation\r\n" in evaluating.body
    assert happy.asked_for("POST", "/experiments")[0].json["eval_dataset_id"] == "ds_2"


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        ({"status": "failed", "failure": {"code": "diverged", "message": "The loss is NaN."}}, "The loss is NaN."),
        ({"status": "cancelled"}, "The experiment was cancelled."),
        ({"status": "completed"}, "The model was trained, but no evaluation of it was begun."),
    ],
)
def test_a_training_that_comes_to_nothing_says_why(
    client: Client, happy: FakeService, job: Job, screen: io.StringIO, ended: dict[str, Any], problem: str
) -> None:
    happy.on("GET", "/experiments/exp_1", Answer(experiment(**ended)))
    outcome = carry_out(client, job, screen)
    assert outcome.problem == problem
    assert outcome.as_json()["status"] == ended["status"]
    assert outcome.as_json()["metrics"] == {}


def test_an_evaluation_that_fails_says_why(client: Client, happy: FakeService, job: Job, screen: io.StringIO) -> None:
    failure = {"code": "out_of_memory", "message": "Memory ran out."}
    happy.on("GET", "/evaluations/eval_1", Answer(evaluation(status="failed", failure=failure)))
    outcome = carry_out(client, job, screen)
    assert outcome.problem == "The model was trained, but not evaluated: Memory ran out."
    assert outcome.as_json()["status"] == "completed"


def test_an_interrupt_cancels_the_experiment_and_waits_for_its_end(
    client: Client, happy: FakeService, job: Job, screen: io.StringIO
) -> None:
    happy.on("GET", "/experiments/exp_1", *[Answer(experiment(status=s)) for s in ("running", "running", "cancelled")])
    happy.on("POST", "/experiments/exp_1/cancel", Answer(experiment(status="running")))
    happy.on("POST", "/datasets/upload", Answer(dataset(), 201))

    def interrupted_at_first(_seconds: float) -> None:
        if not happy.asked_for("POST", "/experiments/exp_1/cancel"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(client, job, Display(screen), pause=interrupted_at_first)
    assert [a.path for a in happy.asked][-3:] == ["/experiments/exp_1/cancel", *["/experiments/exp_1"] * 2]


def test_an_interrupt_before_there_is_an_experiment_cancels_nothing(
    client: Client, happy: FakeService, job: Job, screen: io.StringIO
) -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(client, job, Display(screen), pause=interrupted)
    assert not happy.asked_for("POST", "/experiments/exp_1/cancel")


def test_a_service_without_a_worker_is_named(client: Client, happy: FakeService, job: Job, screen: io.StringIO) -> None:
    happy.on("GET", "/health", Answer({"status": "degraded", "database": "ok", "storage": "ok", "compute": "away"}))
    carry_out(client, job, screen)
    assert "No worker is there at the moment" in screen.getvalue()


def test_a_file_that_is_refused_is_the_services_sentence(
    client: Client, happy: FakeService, job: Job, screen: io.StringIO
) -> None:
    happy.on("POST", "/datasets/upload", Answer({"detail": "This is a PDF document."}, 415))
    with pytest.raises(ApiError, match="This is a PDF document"):
        carry_out(client, job, screen)


def test_a_file_that_cannot_be_read_is_bad_usage(
    client: Client, happy: FakeService, screen: io.StringIO, tmp_path: Path
) -> None:
    with pytest.raises(BadUsage, match=r"gone\.csv cannot be read: No such file"):
        carry_out(client, Job(tmp_path / "gone.csv", None, "scratch-1m", {}, {}, "n"), screen)
