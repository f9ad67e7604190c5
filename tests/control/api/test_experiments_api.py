from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from slmforge.contract.events import (
    Cancelled,
    Checkpointed,
    Failed,
    Finished,
    Measured,
    Noted,
    Progressed,
    Started,
)
from slmforge.contract.spec import ArtifactRef

Make = Callable[..., dict[str, Any]]
Play = Callable[..., None]
STARTED = Started(host="here", pid=1, device="cpu", choices={}, versions={"slmforge": "0.1.0"})
MODEL = ArtifactRef(prefix="runs/r/1/artifacts/model", files=())
FINISHED = Finished(summary={"wall_seconds": 3.0, "peak_memory_bytes": 7, "parameters": 11}, artifacts={"model": MODEL})
CHECKPOINT = Checkpointed(step=5, artifact=ArtifactRef(prefix="runs/r/1/artifacts/checkpoint-5", files=()))


def test_an_experiment_is_answered_at_once_with_every_setting_and_its_reason(experiment: Make) -> None:
    made = experiment(training_config={"learning_rate": 0.003, "epochs": 2})
    assert made["status"] == "created"
    assert made["training_config"]["learning_rate"] == 0.003
    assert made["training_config"]["num_epochs"] == 2
    assert "learning_rate" not in made["training_config_reasons"]
    assert set(made["training_config"]) == set(made["training_config_reasons"]) | {"learning_rate", "num_epochs"}
    assert made["lineage"]["base_model"] == {"source": "scratch", "size": "scratch-1m", "seed": 0}
    assert made["lineage"]["held_out"]["fraction"] == 0.1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"training_config": {"lerning_rate": 1}}, 400, "training_config.lerning_rate"),
        ({"training_config": {"num_epochs": 0}}, 400, "training_config.num_epochs"),
        ({"training_config": {"learning_rate": float("inf")}}, 400, "learning_rate"),
        ({"training_config": {"lora_rank": 4, "method": "full"}}, 400, "lora_rank"),
        ({"compute": "moon"}, 400, "compute"),
        ({"name": ""}, 400, "name"),
        ({"name": "a\0b"}, 400, "NUL"),
        ({"base_model_id": "no-such-model"}, 404, "no-such-model"),
        ({"base_model_id": "/no/such/folder"}, 400, "config.json"),
        ({"base_model_id": "./here"}, 400, "absolute"),
        ({"training_dataset_id": "ds_" + "0" * 32}, 404, "dataset"),
        ({"training_dataset_id": "nonsense"}, 404, "nonsense"),
        ({"surprise": 1}, 400, "surprise"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    api: TestClient, upload: Make, body: dict[str, Any], status: int, said: str
) -> None:
    wanted = {"name": "x", "base_model_id": "scratch-1m", "training_dataset_id": upload()["dataset_id"], **body}
    content = __import__("json").dumps(wanted)
    answer = api.post("/experiments", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["detail"]
    assert api.get("/experiments").json() == []


def test_data_of_the_wrong_purpose_or_kind_is_refused(api: TestClient, upload: Make) -> None:
    train, other = upload(), upload('{"text": "plain words"}\n', dataset_type="evaluation")
    body = {"name": "x", "base_model_id": "scratch-1m", "training_dataset_id": train["dataset_id"]}
    assert api.post("/experiments", json={**body, "eval_dataset_id": train["dataset_id"]}).status_code == 400
    answer = api.post("/experiments", json={**body, "eval_dataset_id": other["dataset_id"]})
    assert answer.status_code == 400
    assert "mapping" in answer.json()["detail"]


def test_a_model_folder_is_pinned_by_its_fingerprint(experiment: Make, tmp_path: Path, api: TestClient) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}')
    made = experiment(base_model_id=str(folder))
    assert len(made["lineage"]["base_model"]["fingerprint"]) == 64
    assert made["training_config"]["method"] == "lora"
    again = experiment(base_model_id=str(folder))
    assert again["base_model_id"] == made["base_model_id"]
    model = api.get(f"/models/{made['base_model_id']}").json()
    assert (model["architecture"], model["context_window"]) == ("LlamaForCausalLM", 64)


def test_a_hub_id_keeps_its_revision(experiment: Make) -> None:
    made = experiment(base_model_id="some-org/some-model@abc123")
    assert made["lineage"]["base_model"] == {
        "source": "hub",
        "repo_id": "some-org/some-model",
        "revision": "abc123",
    }


def test_the_course_of_a_training_shows_in_status_progress_metrics_and_log(
    api: TestClient, experiment: Make, play: Play
) -> None:
    url = f"/experiments/{experiment()['experiment_id']}"
    play("train", STARTED, Noted(level="info", message="reading rows"))
    play("train", Progressed(stage="training", done=0, total=10, unit="steps"))
    play("train", Measured(step=4, values={"loss": 2.5}), Progressed(stage="training", done=4, total=10, unit="steps"))
    running = api.get(url).json()
    assert running["status"] == "running"
    assert [change["status"] for change in running["status_timeline"]] == ["created", "running"]
    assert (running["progress"]["done"], running["progress"]["total"], running["progress"]["step"]) == (4, 10, 4)
    assert running["progress"]["values"] == {"loss": 2.5}
    assert running["progress"]["seconds_left"] >= 0
    play("train", FINISHED)
    ended = api.get(url).json()
    assert ended["status"] == "completed"
    assert ended["actual"]["wall_seconds"] == 3.0
    assert ended["artifacts"]["model"].endswith("runs/r/1/artifacts/model")
    assert [m["values"] for m in api.get(f"{url}/metrics").json()] == [{"loss": 2.5}]
    log = api.get(f"{url}/logs")
    assert log.headers["content-type"].startswith("text/plain")
    assert [line.split(" ", 2)[2] for line in log.text.splitlines()] == [
        "created", "launched", "started on cpu", "reading rows", "step 4: loss 2.5", "finished", "completed",
    ]  # fmt: skip


def test_events_are_numbered_without_gaps_and_stream_until_the_end(
    api: TestClient, experiment: Make, play: Play
) -> None:
    url = f"/experiments/{experiment()['experiment_id']}/events"
    play("train", STARTED, Measured(step=1, values={"loss": 1.0}))
    play("train", FINISHED)
    events = api.get(url).json()
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events] == ["created", "launched", "started", "measured", "finished", "ended"]
    assert [event["number"] for event in api.get(f"{url}?after=4").json()] == [5, 6]
    stream = api.get(url, headers={"Accept": "text/event-stream", "Last-Event-ID": "4"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert [line for line in stream.text.splitlines() if line.startswith("id")] == ["id: 5", "id: 6"]


def test_a_completed_training_makes_a_model_and_starts_its_evaluation(
    api: TestClient, experiment: Make, play: Play
) -> None:
    for version in ("1", "2"):
        made = experiment()
        play("train", STARTED, FINISHED)
        ended = api.get(f"/experiments/{made['experiment_id']}").json()
        model = api.get(f"/models/{ended['model_id']}").json()
        assert (model["version"], model["model_type"], model["is_latest"]) == (version, "fine_tuned", True)
        assert model["experiment_id"] == made["experiment_id"]
        assert model["base_model_id"] == "scratch-1m"
        assert model["parameters_count"] == 11
        assert model["evaluation_ids"] == [e["evaluation_id"] for e in ended["evaluations"]]
        assert [e["status"] for e in ended["evaluations"]] == ["created"]
    assert [m["is_latest"] for m in api.get("/models?model_type=fine_tuned").json()] == [True, False]


def test_an_unchanged_experiment_is_not_sent_again(api: TestClient, experiment: Make, play: Play) -> None:
    url = f"/experiments/{experiment()['experiment_id']}"
    etag = api.get(url).headers["etag"]
    assert api.get(url, headers={"If-None-Match": etag}).status_code == 304
    play("train", STARTED)
    assert api.get(url, headers={"If-None-Match": etag}).status_code == 200


def test_a_queued_experiment_is_cancelled_at_once_and_only_once(api: TestClient, experiment: Make) -> None:
    url = f"/experiments/{experiment()['experiment_id']}"
    assert api.post(f"{url}/cancel").json()["status"] == "cancelled"
    again = api.post(f"{url}/cancel")
    assert again.status_code == 409
    assert "cancelled already" in again.json()["detail"]


def test_a_cancel_that_was_acknowledged_wins_over_an_end_told_later(
    api: TestClient, experiment: Make, play: Play
) -> None:
    url = f"/experiments/{experiment()['experiment_id']}"
    play("train", STARTED)
    asked = api.post(f"{url}/cancel").json()
    assert (asked["status"], asked["cancel_requested"]) == ("running", True)
    play("train", FINISHED)
    ended = api.get(url).json()
    assert ended["status"] == "cancelled"
    assert ended["model_id"] is None
    assert ended["evaluations"] == []


def test_a_completed_experiment_can_be_neither_cancelled_nor_resumed(
    api: TestClient, experiment: Make, play: Play
) -> None:
    url = f"/experiments/{experiment()['experiment_id']}"
    play("train", STARTED, FINISHED)
    assert api.post(f"{url}/cancel").status_code == 409
    assert api.post(f"{url}/resume").status_code == 409
    assert api.get(url).json()["status"] == "completed"


def test_a_failure_is_told_in_a_sentence(api: TestClient, experiment: Make, play: Play) -> None:
    url = f"/experiments/{experiment()['experiment_id']}"
    play("train", STARTED, Failed(code="diverged", message="The loss became nan at step 3.", details="Traceback …"))
    ended = api.get(url).json()
    assert ended["status"] == "failed"
    assert ended["failure"] == {"code": "diverged", "message": "The loss became nan at step 3."}


def test_resuming_makes_a_new_experiment_that_goes_on_from_the_checkpoint(
    api: TestClient, experiment: Make, play: Play
) -> None:
    stopped = experiment()
    url = f"/experiments/{stopped['experiment_id']}"
    play("train", STARTED, CHECKPOINT)
    api.post(f"{url}/cancel")
    play("train", Cancelled(step=5))
    assert api.get(url).json()["status"] == "cancelled"
    answer = api.post(f"{url}/resume", headers={"Idempotency-Key": "once"})
    assert answer.status_code == 201
    assert answer.json()["resumed_from_id"] == stopped["experiment_id"]
    assert answer.json()["status"] == "created"
    assert api.post(f"{url}/resume", headers={"Idempotency-Key": "once"}).json() == answer.json()
    assert len(api.get("/experiments").json()) == 2


def test_without_a_checkpoint_there_is_nothing_to_resume(api: TestClient, experiment: Make) -> None:
    url = f"/experiments/{experiment()['experiment_id']}"
    api.post(f"{url}/cancel")
    answer = api.post(f"{url}/resume")
    assert answer.status_code == 409
    assert "checkpoint" in answer.json()["detail"]


def test_the_same_request_with_the_same_key_is_one_experiment(api: TestClient, upload: Make) -> None:
    body = {"name": "x", "base_model_id": "scratch-1m", "training_dataset_id": upload()["dataset_id"]}
    key = {"Idempotency-Key": "k"}
    first, again = api.post("/experiments", json=body, headers=key), api.post("/experiments", json=body, headers=key)
    assert first.json() == again.json()
    assert api.post("/experiments", json={**body, "name": "y"}, headers=key).status_code == 409
    assert len(api.get("/experiments").json()) == 1


def test_experiments_are_listed_by_status(api: TestClient, experiment: Make, play: Play) -> None:
    first, second = experiment(), experiment()
    play("train", STARTED)
    assert [e["experiment_id"] for e in api.get("/experiments?status=running").json()] == [first["experiment_id"]]
    assert [e["experiment_id"] for e in api.get("/experiments").json()] == [
        second["experiment_id"],
        first["experiment_id"],
    ]
