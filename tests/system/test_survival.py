"""kill -9 of API, worker and trainer: no experiment is lost, none is launched twice, no process is left over."""

import os
import signal
from collections.abc import Callable
from typing import Any

LONG = 900.0  # epochs; far more than any of these tests waits for


def test_from_upload_to_verdict(server: Any, wait_for: Callable[..., Any]) -> None:
    experiment_id = server.create_experiment(num_epochs=2)
    ended = server.wait_for_status(experiment_id, "completed", "failed")
    assert ended["status"] == "completed", ended["failure"]
    evaluation_id = ended["evaluations"][0]["evaluation_id"]

    def evaluation() -> dict[str, Any]:
        return dict(server.http.get(f"/evaluations/{evaluation_id}").json())

    wait_for(lambda: evaluation()["status"] in ("completed", "failed"), "the evaluation")
    assert evaluation()["failure"] is None
    assert set(evaluation()["metrics"]) == {"accuracy", "macro_f1", "perplexity"}
    files = {file["path"] for file in server.http.get(f"/models/{ended['model_id']}").json()["files"]}
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= files
    wait_for(lambda: not server.trainers(), "the end of every trainer")


def test_a_killed_trainer_is_followed_by_another_from_the_checkpoint(server: Any, wait_for: Callable[..., Any]) -> None:
    experiment_id = server.create_experiment(num_epochs=LONG)
    server.wait_for_checkpoint(experiment_id)
    step = server.experiment(experiment_id)["progress"]["step"]
    killed = server.trainers()
    os.kill(killed[0], signal.SIGKILL)
    wait_for(lambda: server.event_types(experiment_id).count("started") == 2, "the second attempt")
    assert server.experiment(experiment_id)["status"] == "running"
    wait_for(lambda: server.experiment(experiment_id)["progress"]["step"] > step, "progress beyond the checkpoint")
    types = server.event_types(experiment_id)
    assert (types.count("lost"), types.count("launched")) == (1, 2)
    assert len(server.trainers()) == 1
    server.http.post(f"/experiments/{experiment_id}/cancel")
    ended = server.wait_for_status(experiment_id, "cancelled")
    assert server.event_types(experiment_id).count("ended") == 1
    wait_for(lambda: not server.trainers(), "the end of the trainer")
    assert server.http.post(f"/experiments/{ended['experiment_id']}/resume").status_code == 201


def test_a_killed_worker_is_replaced_and_the_trainer_kept(server: Any, wait_for: Callable[..., Any]) -> None:
    experiment_id = server.create_experiment(num_epochs=LONG)
    server.wait_for_checkpoint(experiment_id)
    trainers, workers = server.trainers(), server.workers()
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: server.workers() not in ([], workers), "another worker")
    told = len(server.event_types(experiment_id))
    wait_for(lambda: len(server.event_types(experiment_id)) > told, "news by way of the other worker")
    assert server.trainers() == trainers
    assert server.event_types(experiment_id).count("launched") == 1


def test_a_killed_server_takes_its_worker_and_trainer_along_and_goes_on_later(
    server: Any, wait_for: Callable[..., Any]
) -> None:
    experiment_id = server.create_experiment(num_epochs=LONG)
    server.wait_for_checkpoint(experiment_id)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not server.processes(), "the end of worker and trainer")
    server.start()
    wait_for(lambda: server.event_types(experiment_id).count("started") == 2, "the second attempt")
    assert "interrupted" in server.event_types(experiment_id)
    assert server.experiment(experiment_id)["status"] == "running"


def test_a_trainer_that_outlived_server_and_worker_is_found_again(server: Any, wait_for: Callable[..., Any]) -> None:
    experiment_id = server.create_experiment(num_epochs=LONG)
    server.wait_for_checkpoint(experiment_id)
    trainers = server.trainers()
    for pid in (*server.workers(), server.process.pid):
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    assert server.trainers() == trainers
    server.start()
    told = len(server.event_types(experiment_id))
    wait_for(lambda: len(server.event_types(experiment_id)) > told, "news of the old trainer")
    assert server.trainers() == trainers
    assert server.event_types(experiment_id).count("launched") == 1


def test_stopping_the_server_in_order_leaves_no_process(server: Any) -> None:
    server.wait_for_checkpoint(server.create_experiment(num_epochs=LONG))
    server.stop()
    assert server.processes() == []


def test_two_experiments_at_once_wait_for_each_other_and_cancelling_the_first_lets_the_second_begin(
    server: Any, wait_for: Callable[..., Any]
) -> None:
    first, second = server.create_experiment(num_epochs=LONG), server.create_experiment(num_epochs=LONG)
    server.wait_for_checkpoint(first)
    assert server.experiment(second)["status"] == "created"
    assert len(server.trainers()) == 1
    server.http.post(f"/experiments/{first}/cancel")
    server.wait_for_status(second, "running")
    assert server.experiment(first)["status"] == "cancelled"
