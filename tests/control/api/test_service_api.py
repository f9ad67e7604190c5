"""What holds for every endpoint: errors, hosts, documentation, order of commit and answer."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from slmforge.control.database import Database
from slmforge.control.tables import Experiment


def test_the_root_says_what_this_is_and_health_what_answers(api: TestClient) -> None:
    assert api.get("/").json()["name"] == "SLM Forge"
    assert api.get("/health").json() == {"status": "degraded", "database": "ok", "storage": "ok", "compute": "away"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/datasets", 405),
        ("GET", "/datasets/nonsense", 404),
        ("POST", "/experiments", 400),
    ],
)
def test_every_error_is_a_problem_document(api: TestClient, method: str, path: str, status: int) -> None:
    answer = api.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert isinstance(problem["detail"], str)
    assert problem["status"] == status
    assert problem["instance"].startswith("urn:uuid:")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"name": ', "the request body: it is not valid JSON (Expecting value at character 9)."),
        ("[]", "the request body: a JSON object is expected."),
    ],
)
def test_a_body_that_is_no_object_is_told_so(api: TestClient, body: str, said: str) -> None:
    answer = api.post("/experiments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"] == said


def test_field_errors_are_listed_beside_the_sentence(api: TestClient) -> None:
    problem = api.post("/experiments", json={"name": "x"}).json()
    assert {tuple(error["loc"]) for error in problem["errors"]} == {
        ("body", "base_model_id"),
        ("body", "training_dataset_id"),
    }


def test_a_bug_is_a_500_that_tells_nothing_but_its_number(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmforge.control.datasets.service.find", lambda *_, **__: 1 / 0)
    answer = api.get("/datasets")
    assert answer.status_code == 500
    assert "instance" in answer.json()
    assert "division" not in answer.text
    assert "Traceback" not in answer.text


def test_a_database_that_is_away_is_a_503_with_retry_after(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT secret", {}, Exception("connection refused"))

    monkeypatch.setattr("slmforge.control.datasets.service.find", away)
    answer = api.get("/datasets")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert "secret" not in answer.text


def test_a_commit_that_fails_is_never_answered_with_success(api: TestClient, experiment: Any) -> None:
    database: Database = api.app.state.database  # type: ignore[attr-defined]
    made = experiment()

    def refuse(_: Any) -> Iterator[None]:
        raise OperationalError("COMMIT", {}, Exception("disk full"))

    event.listen(database.engine, "commit", refuse)
    try:
        answer = api.post(f"/experiments/{made['experiment_id']}/cancel")
    finally:
        event.remove(database.engine, "commit", refuse)
    assert answer.status_code == 503
    with database.read() as session:
        assert [e.run.status for e in session.query(Experiment)] == ["created"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_a_foreign_name_is_refused(api: TestClient, host: str) -> None:
    assert api.get("/datasets", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000"])
def test_loopback_is_us(api: TestClient, host: str) -> None:
    assert api.get("/datasets", headers={"Host": host}).status_code == 200


def test_a_foreign_page_cannot_change_anything(api: TestClient) -> None:
    foreign = {"Origin": "https://evil.example"}
    assert api.post("/datasets/upload", files={"file": b"x"}, headers=foreign).status_code == 400
    assert api.post("/experiments", content="{}", headers={"Content-Type": "text/plain"}).status_code == 400


def test_the_documentation_shows_an_example_of_each_request_and_answer(api: TestClient) -> None:
    document = api.get("/openapi.json").json()
    schemas = document["components"]["schemas"]

    def has_example(schema: dict[str, Any]) -> bool:
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
        if "example" in schema or "examples" in schema:
            return True
        if schema.get("type") == "array":
            return has_example(schema["items"])
        required = schema.get("required", [])
        shown = [p for p in schema.get("properties", {}).values() if "examples" in p or "format" in p or "const" in p]
        return bool(required) and len(shown) >= len(required)

    def contents(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from operation.get("requestBody", {}).get("content", {}).values()
        for status, answer in operation["responses"].items():
            if status < "300":
                yield from answer.get("content", {}).values()

    operations = {f"{m} {path}": o for path, found in document["paths"].items() for m, o in found.items()}
    assert [name for name, operation in operations.items() if "422" in operation["responses"]] == []
    missing = [
        name
        for name, operation in operations.items()
        for media in contents(operation)
        if not {"example", "examples"} & set(media) and not has_example(media.get("schema", {}))
    ]
    assert not missing


def test_every_route_of_guide_one_is_served(api: TestClient) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert {
        ("POST", "/datasets/upload"), ("GET", "/datasets"), ("GET", "/datasets/{dataset_id}/download"),
        ("GET", "/models"), ("GET", "/models/{model_id}"),
        ("POST", "/experiments"), ("GET", "/experiments"), ("GET", "/experiments/{experiment_id}"),
        ("GET", "/evaluations"), ("GET", "/evaluations/{evaluation_id}"),
    } <= routes  # fmt: skip
