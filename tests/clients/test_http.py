import socket
from pathlib import Path

import pytest

from slmforge.clients.errors import ApiError, BadUsage, ClientError, Unreachable
from slmforge.clients.http import LONGEST_WAIT_SECONDS, TRIES, Client

from .conftest import Answer, FakeService, dataset, experiment


def test_a_get_is_repeated_while_the_service_is_away(client: Client, service: FakeService, pauses: list[float]) -> None:
    away = Answer({"detail": "The database does not answer; try again in a few seconds."}, 503)
    service.on("GET", "/experiments/exp_1", away, Answer(status=None), Answer(experiment(status="running")))
    assert client.get_experiment("exp_1").status == "running"
    assert pauses == [0.25, 0.5]


def test_a_wait_that_the_service_asks_for_is_kept_within_bounds(
    client: Client, service: FakeService, pauses: list[float]
) -> None:
    busy = [Answer({"detail": "busy"}, 429, {"Retry-After": seconds}) for seconds in ("3", "3600")]
    service.on("GET", "/experiments/exp_1", *busy, Answer(experiment()))
    client.get_experiment("exp_1")
    assert pauses == [3, LONGEST_WAIT_SECONDS]


def test_a_service_that_stays_away_is_an_error_in_the_end(client: Client, service: FakeService) -> None:
    service.on("GET", "/experiments/exp_1", Answer({"detail": "The database does not answer."}, 503))
    with pytest.raises(ApiError, match=r"The database does not answer\.") as caught:
        client.get_experiment("exp_1")
    assert caught.value.exit_code == 1
    assert len(service.asked) == TRIES


def test_a_creation_is_repeated_under_the_same_key(client: Client, service: FakeService) -> None:
    service.on("POST", "/experiments", Answer(status=None), Answer(experiment(), 201))
    client.create_experiment(name="n", base_model_id="scratch-1m", training_dataset_id="ds_1")
    first, second = service.asked
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    assert first.body == second.body


def test_every_creation_has_a_key_of_its_own(client: Client, service: FakeService) -> None:
    service.on("POST", "/experiments/exp_1/resume", Answer(experiment(), 201))
    client.resume_experiment("exp_1")
    client.resume_experiment("exp_1")
    assert len({asked.headers["Idempotency-Key"] for asked in service.asked}) == 2


def test_a_cancel_has_no_key_and_is_not_repeated(client: Client, service: FakeService, pauses: list[float]) -> None:
    service.on("POST", "/experiments/exp_1/cancel", Answer({"detail": "away"}, 503))
    with pytest.raises(ApiError):
        client.cancel_experiment("exp_1")
    assert len(service.asked) == 1
    assert pauses == []


def test_a_refusal_is_the_services_own_sentence_and_is_not_repeated(client: Client, service: FakeService) -> None:
    sentence = "training_config.num_epochs: input should be greater than 0."
    service.on("POST", "/experiments", Answer({"detail": sentence}, 400))
    with pytest.raises(ApiError) as caught:
        client.create_experiment(name="n", base_model_id="m", training_dataset_id="ds_1", training_config={"a": 1})
    assert (caught.value.status, caught.value.detail, caught.value.exit_code) == (400, sentence, 2)
    assert len(service.asked) == 1


def test_an_error_that_is_not_the_services_is_still_a_sentence(client: Client, service: FakeService) -> None:
    service.on("GET", "/datasets/ds_1", Answer(b"<h1>Oops</h1>", 500))
    with pytest.raises(ApiError, match=r"The server at 127\.0\.0\.1 answered 500 Internal Server Error\."):
        client.get_dataset("ds_1")


def test_an_answer_of_something_else_is_named(client: Client, service: FakeService) -> None:
    service.on("GET", "/health", Answer(b"<h1>Welcome</h1>"))
    with pytest.raises(ApiError, match="does not answer as SLM Forge does") as caught:
        client.health()
    assert caught.value.exit_code == 1


def test_a_list_goes_on_through_all_pages(client: Client, service: FakeService) -> None:
    second = {"Link": '</datasets?dataset_type=training&cursor=abc>; rel="next"'}
    service.on("GET", "/datasets?dataset_type=training", Answer([dataset(dataset_id="ds_3")], headers=second))
    service.on("GET", "/datasets?dataset_type=training&cursor=abc", Answer([dataset(dataset_id="ds_2")]))
    assert [found.dataset_id for found in client.list_datasets(dataset_type="training")] == ["ds_3", "ds_2"]


def test_an_upload_that_fails_is_sent_again_whole(client: Client, service: FakeService, tmp_path: Path) -> None:
    content = b"text,label\n" + b"late,delivery\n" * 20_000
    file = tmp_path / "tickets.csv"
    file.write_bytes(content)
    heard: list[int] = []
    service.on("POST", "/datasets/upload", Answer({"detail": "busy"}, 503), Answer(dataset(), 201))
    client.upload_dataset(file, dataset_type="evaluation", mapping={"text": "message"}, on_progress=heard.append)
    first, second = service.asked
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    for sent in (first, second):
        assert content in sent.body
        assert b'filename="tickets.csv"' in sent.body
        assert b'{"text":"message"}' in sent.body
        assert b"evaluation" in sent.body
    assert max(heard) == len(content)
    assert any(0 < sent_bytes < len(content) for sent_bytes in heard)


def test_nobody_at_the_address_is_a_sentence_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else can be there
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(address) as client, pytest.raises(Unreachable, match=rf"Nothing answers at http://{address} .*up"):
            client.health()


@pytest.mark.parametrize("address", ["ftp://127.0.0.1", "http://[::1"])
def test_what_is_no_address_is_bad_usage(address: str) -> None:
    with pytest.raises(BadUsage, match="is not an address"), Client(address) as client:
        client.health()


def test_a_proxy_is_not_asked_for_this_machine(service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Client(service.url) as client:
        assert client.health().status == "ok"


def test_a_refusal_while_paging_is_an_error_too(client: Client) -> None:
    with pytest.raises(ClientError, match="no answer to GET /experiments"):
        list(client.list_experiments(status="running"))
