import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from slmforge.contract.events import Finished, Started

Upload = Callable[..., dict[str, Any]]
STARTED = Started(host="here", pid=1, device="cpu", choices={}, versions={})


def test_an_upload_answers_with_the_fields_of_the_guide_and_what_was_understood(
    api: TestClient, upload: Upload
) -> None:
    text = "text,category\nhello,greeting\nbye,parting\n"
    dataset = upload(text, name="support_data_v1", description="d", dataset_type="evaluation")
    assert dataset["dataset_id"].startswith("ds_")
    assert len(dataset["dataset_id"]) == 35
    assert (dataset["name"], dataset["dataset_type"], dataset["row_count"]) == ("support_data_v1", "evaluation", 2)
    assert len(dataset["upload_date"]) == 10
    assert dataset["created_at"].endswith("Z")
    assert (dataset["format"], dataset["layout"]) == ("csv", "classification")
    assert dataset["mapping"] == {"text": "text", "label": "category"}
    assert dataset["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert dataset["size"] == len(text)
    assert dataset["session_id"].replace("-", "") == dataset["dataset_id"][3:]


def test_either_form_of_an_id_names_a_dataset(api: TestClient, upload: Upload) -> None:
    dataset = upload()
    assert api.get(f"/datasets/{dataset['session_id']}").json() == api.get(f"/datasets/{dataset['dataset_id']}").json()


def test_a_row_that_cannot_be_used_is_listed_with_its_line(upload: Upload) -> None:
    dataset = upload('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n{"prompt": "c", "completion": "d"}\n')
    assert (dataset["row_count"], dataset["invalid_rows"]) == (2, 1)
    assert dataset["issues"][0]["line"] == 2
    assert dataset["issues"][0]["remedy"]


def test_a_mapping_says_which_column_is_which(upload: Upload) -> None:
    dataset = upload("a,b\nhello,greeting\n", mapping='{"text": "a", "label": "b"}')
    assert dataset["layout"] == "classification"


@pytest.mark.parametrize(
    ("content", "form", "status"),
    [
        (b"", {}, 400),
        (b"text,category\n", {}, 400),
        (b"just words", {}, 400),
        (b"%PDF-1.7 binary", {}, 415),
        (b"text,category\na,b\n", {"mapping": "not json"}, 400),
        (b"text,category\na,b\n", {"mapping": '{"text": "missing"}'}, 400),
        (b"text,category\na,b\n", {"dataset_type": "testing"}, 400),
        (b"text,category\n" + b"a,b\n" * 60_000, {}, 413),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_leaves_nothing(
    api: TestClient, content: bytes, form: dict[str, str], status: int
) -> None:
    answer = api.post("/datasets/upload", files={"file": ("x.csv", content)}, data=form)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"].endswith(".")
    assert api.get("/datasets").json() == []
    assert list(api.app.state.store.list("datasets")) == []  # type: ignore[attr-defined]


def test_the_download_is_the_very_bytes(api: TestClient, upload: Upload) -> None:
    text = "\ufefftext,category\r\nhéllo,greeting\r\n"
    dataset = upload(text, filename='../../et"c/päss.csv\r\nX: y')
    answer = api.get(f"/datasets/{dataset['dataset_id']}/download")
    assert answer.content == text.encode()
    assert answer.headers["etag"] == f'"{dataset["sha256"]}"'
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; ")
    assert "/" not in disposition
    assert "\n" not in disposition


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=0-3", 206, b"text"),
        ("bytes=5-", 206, b"category\na,b\n"),
        ("bytes=-4", 206, b"a,b\n"),
        ("bytes=100-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=0-1,3-4", 200, b"text,category\na,b\n"),
        ("lines=1-2", 200, b"text,category\na,b\n"),
    ],
)
def test_a_range_gives_that_part(api: TestClient, upload: Upload, asked: str, status: int, content: bytes) -> None:
    dataset = upload("text,category\na,b\n")
    answer = api.get(f"/datasets/{dataset['dataset_id']}/download", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (status, content)


def test_a_download_that_the_client_has_already_is_not_sent_again(api: TestClient, upload: Upload) -> None:
    url = f"/datasets/{upload()['dataset_id']}/download"
    etag = api.get(url).headers["etag"]
    assert api.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert api.get(url, headers={"Range": "bytes=0-3", "If-Range": '"another"'}).status_code == 200


def test_lists_filter_by_type_and_by_words(api: TestClient, upload: Upload) -> None:
    upload(name="winter_100%", dataset_type="training")
    upload(name="summer", dataset_type="evaluation")
    assert [d["name"] for d in api.get("/datasets").json()] == ["summer", "winter_100%"]
    assert [d["name"] for d in api.get("/datasets?dataset_type=training").json()] == ["winter_100%"]
    assert [d["name"] for d in api.get("/datasets", params={"q": "100%"}).json()] == ["winter_100%"]
    assert api.get("/datasets?dataset_type=other").status_code == 400


def test_pages_hold_still_while_rows_are_added(api: TestClient, upload: Upload) -> None:
    for n in range(5):
        upload(name=str(n))
    first = api.get("/datasets?limit=2")
    assert [d["name"] for d in first.json()] == ["4", "3"]
    assert first.headers["x-total-count"] == "5"
    upload(name="5")
    second = api.get(first.links["next"]["url"])
    assert [d["name"] for d in second.json()] == ["2", "1"]
    third = api.get(second.links["next"]["url"])
    assert [d["name"] for d in third.json()] == ["0"]
    assert "next" not in third.links


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "cursor=nonsense!", "cursor=AAAA"])
def test_a_page_that_cannot_be_is_refused(api: TestClient, query: str) -> None:
    assert api.get(f"/datasets?{query}").status_code == 400


def test_a_dataset_can_be_deleted_until_an_experiment_used_it(
    api: TestClient, upload: Upload, experiment: Callable[..., dict[str, Any]]
) -> None:
    free, used = upload(), upload()
    experiment(training_dataset_id=used["dataset_id"])
    assert api.delete(f"/datasets/{free['dataset_id']}").status_code == 204
    assert api.get(f"/datasets/{free['dataset_id']}").status_code == 404
    assert list(api.app.state.store.list(f"datasets/{free['dataset_id'][3:]}")) == []  # type: ignore[attr-defined]
    assert api.delete(f"/datasets/{used['dataset_id']}").status_code == 409


def test_the_profile_stands_in_the_answer_once_its_run_has_ended(
    api: TestClient, upload: Upload, play: Callable[..., None]
) -> None:
    dataset = upload()
    assert (dataset["profile_status"], dataset["profile"]) == ("created", None)
    play("profile", STARTED, Finished(summary={"rows": 60}, artifacts={}))
    dataset = api.get(f"/datasets/{dataset['dataset_id']}").json()
    assert (dataset["profile_status"], dataset["profile"]) == ("completed", {"rows": 60})


def test_the_same_upload_with_the_same_key_is_one_dataset(api: TestClient) -> None:
    def send(text: str) -> Any:
        files = {"file": ("x.csv", text.encode())}
        return api.post("/datasets/upload", files=files, headers={"Idempotency-Key": "k1"})

    first, again, other = send("text,category\na,b\n"), send("text,category\na,b\n"), send("text,category\nc,d\n")
    assert first.json() == again.json()
    assert other.status_code == 409
    assert len(api.get("/datasets").json()) == 1
    assert len(list(api.app.state.store.list("datasets"))) == 1  # type: ignore[attr-defined]


def test_json_of_splits_gives_each_purpose_its_split(upload: Upload) -> None:
    text = json.dumps({"train": [{"prompt": "a", "completion": "b"}] * 3, "test": [{"prompt": "c", "completion": "d"}]})
    assert (upload(text)["split"], upload(text)["row_count"]) == ("train", 3)
    assert upload(text, dataset_type="evaluation")["row_count"] == 1
