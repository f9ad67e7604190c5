from collections.abc import Callable
from typing import Any

from starlette.testclient import TestClient

from slmforge.contract.events import Finished, Started
from slmforge.contract.spec import ArtifactRef

STARTED = Started(host="here", pid=1, device="cpu", choices={}, versions={})


def test_the_catalogue_is_listed_newest_first_and_read_by_name(api: TestClient) -> None:
    models = api.get("/models?model_type=base").json()
    assert [m["created_at"] for m in models] == sorted((m["created_at"] for m in models), reverse=True)
    phi = api.get("/models/phi-4-mini").json()
    assert phi in models
    assert (phi["parameters_count"], phi["license"], phi["is_gated"]) == (3836021760, "MIT", False)
    assert {"scratch-1m", "scratch-5m", "scratch-25m"} < {m["model_id"] for m in models}


def test_the_catalogue_can_be_seeded_again(api: TestClient) -> None:
    before = api.get("/models").json()
    with TestClient(api.app, base_url="http://localhost") as again:
        assert again.get("/models").json() == before


def test_an_unknown_model_is_not_found(api: TestClient) -> None:
    assert api.get("/models/gpt-99").status_code == 404
    assert api.get("/models/model_" + "0" * 32).status_code == 404


def test_the_files_of_a_fine_tuned_model_can_be_downloaded(
    api: TestClient, experiment: Callable[..., dict[str, Any]], play: Callable[..., None]
) -> None:
    store = api.app.state.store  # type: ignore[attr-defined]
    blob = store.put("runs/r/1/artifacts/model/model.safetensors", [b"weights"])
    made = experiment()
    artifact = ArtifactRef(prefix="runs/r/1/artifacts/model", files=(blob,))
    play("train", STARTED, Finished(summary={}, artifacts={"model": artifact}))
    model_id = api.get(f"/experiments/{made['experiment_id']}").json()["model_id"]
    model = api.get(f"/models/{model_id}").json()
    assert [file["path"] for file in model["files"]] == ["model.safetensors"]
    assert api.get(f"/models/{model_id}/files/model.safetensors").content == b"weights"
    for path in ("other", "../../../../datasets/x", "%2e%2e/model.safetensors"):
        assert api.get(f"/models/{model_id}/files/{path}").status_code == 404
    assert api.get("/models/scratch-1m/files/model.safetensors").status_code == 404
