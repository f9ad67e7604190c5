from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from slmforge.contract.events import Finished, Measured, Started
from slmforge.contract.spec import ArtifactRef

Make = Callable[..., dict[str, Any]]
Play = Callable[..., None]
STARTED = Started(host="here", pid=1, device="cpu", choices={}, versions={})
MODEL = ArtifactRef(prefix="runs/r/1/artifacts/model", files=())
ACCURACY = {"base": 0.1, "tuned": 0.9, "difference": 0.8, "interval": [0.7, 0.9], "verdict": "better"}
SUMMARY = {
    "task": "classification",
    "rows": 6,
    "metrics": {"accuracy": ACCURACY},
    "samples": [{"row": 1}],
    "labels": ["a"],
}


@pytest.fixture
def trained(api: TestClient, experiment: Make, play: Play) -> dict[str, Any]:
    made = experiment()
    points = [Measured(step=1, values={"loss": 3.0}), Measured(step=2, values={"loss": 2.0, "held_out_loss": 2.5})]
    play("train", STARTED, *points, Finished(summary={"steps": 2}, artifacts={"model": MODEL}))
    return dict(api.get(f"/experiments/{made['experiment_id']}").json())


def test_an_evaluation_follows_the_training_and_tells_base_from_tuned(
    api: TestClient, trained: dict[str, Any], play: Play
) -> None:
    url = f"/evaluations/{trained['evaluations'][0]['evaluation_id']}"
    assert api.get(url).json()["metrics"] == {}
    play("evaluate", STARTED, Finished(summary=SUMMARY, artifacts={}))
    evaluation = api.get(url).json()
    assert evaluation["status"] == "completed"
    assert evaluation["metrics"] == {"accuracy": ACCURACY}
    assert evaluation["rows"] == 6
    assert evaluation["sample_outputs"] == [{"row": 1}]
    assert evaluation["details"] == {"labels": ["a"]}
    assert evaluation["loss_curve"] == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "held_out_loss": 2.5}]
    assert evaluation["training_statistics"] == {"steps": 2}
    assert (evaluation["base_model_id"], evaluation["model_id"]) == ("scratch-1m", trained["model_id"])


def test_a_model_can_be_evaluated_again_on_other_rows(api: TestClient, trained: dict[str, Any], upload: Make) -> None:
    rows = upload(dataset_type="evaluation")
    body = {"model_id": trained["model_id"], "dataset_id": rows["dataset_id"]}
    answer = api.post("/evaluations", json=body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    assert answer.json()["dataset_id"] == rows["dataset_id"]
    assert api.post("/evaluations", json=body, headers={"Idempotency-Key": "k"}).json() == answer.json()
    listed = api.get("/evaluations", params={"experiment_id": trained["experiment_id"]}).json()
    assert listed[0]["evaluation_id"] == answer.json()["evaluation_id"]
    assert len(listed) == 2
    assert listed[0]["loss_curve"] is None


def test_only_a_fine_tuned_model_on_rows_of_its_kind_can_be_evaluated(
    api: TestClient, trained: dict[str, Any], upload: Make
) -> None:
    assert api.post("/evaluations", json={"model_id": "scratch-1m"}).status_code == 400
    assert api.post("/evaluations", json={"model_id": "model_" + "0" * 32}).status_code == 404
    words = upload('{"text": "plain words"}\n', dataset_type="evaluation")
    answer = api.post("/evaluations", json={"model_id": trained["model_id"], "dataset_id": words["dataset_id"]})
    assert answer.status_code == 400


def test_a_dataset_that_an_evaluation_used_stays(api: TestClient, trained: dict[str, Any], upload: Make) -> None:
    rows = upload(dataset_type="evaluation")
    api.post("/evaluations", json={"model_id": trained["model_id"], "dataset_id": rows["dataset_id"]})
    assert api.delete(f"/datasets/{rows['dataset_id']}").status_code == 409
