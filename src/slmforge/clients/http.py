"""The service over HTTP: one method for each thing it does, each answer a small typed object.

What may be repeated is repeated when the network or the service fails for a moment: GETs, and POSTs under an
`Idempotency-Key`, which the client makes itself. Used by the command line; it serves any program as well.
"""

import io
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from slmforge.clients.answers import Dataset, Evaluation, Event, Experiment, Health, MetricPoint, Model
from slmforge.clients.errors import ApiError, BadUsage, Unreachable

TRIES = 8  # with the waits below some 18 seconds: long enough for a server that is being restarted
FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 5.0
TIMEOUT = httpx2.Timeout(60, connect=5)
UPLOAD_TIMEOUT = httpx2.Timeout(1800, connect=5)  # the answer comes when every row has been read
PASSING = {429, 502, 503, 504}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}

T = TypeVar("T")
Send = Callable[[], httpx2.Response]


class Client:
    """A connection to the service at `base_url`. Every method raises `ApiError` or `Unreachable`."""

    def __init__(self, base_url: str, *, pause: Callable[[float], None] = time.sleep) -> None:
        self.base_url = (base_url if "://" in base_url else f"http://{base_url}").rstrip("/")
        self._pause = pause
        try:
            # A proxy of the environment leads outside, never to this machine.
            proxied = httpx2.URL(self.base_url).host not in LOOPBACK
            self._http = httpx2.Client(base_url=self.base_url, timeout=TIMEOUT, trust_env=proxied)
        except httpx2.InvalidURL:
            raise BadUsage(f"{base_url!r} is not an address; give one such as http://127.0.0.1:8000.") from None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> Health:
        """Whether the parts of the service answer. Asked once only: waiting is the caller's affair."""
        return self._read(Health, self._sent(lambda: self._http.get("/health"), tries=1))

    def look_at(self, path: str) -> None:
        """See that a page for people is there, such as `/docs`."""
        self._sent(lambda: self._http.get(path))

    def upload_dataset(
        self,
        path: Path,
        *,
        dataset_type: Literal["training", "evaluation"] = "training",
        name: str = "",
        mapping: dict[str, str] | None = None,
        on_progress: Callable[[int], None] = lambda _sent_bytes: None,
    ) -> Dataset:
        """Upload a file without holding it in memory. `on_progress` hears how many bytes have been read so far."""
        fields = {"name": name, "dataset_type": dataset_type}
        if mapping:
            fields["mapping"] = TypeAdapter(dict[str, str]).dump_json(mapping).decode()
        headers = _new_key()

        def send() -> httpx2.Response:
            with _WatchedFile(path, on_progress) as file:
                files = {"file": (path.name, file)}
                return self._http.post(
                    "/datasets/upload", data=fields, files=files, headers=headers, timeout=UPLOAD_TIMEOUT
                )

        return self._read(Dataset, self._sent(send))

    def get_dataset(self, dataset_id: str) -> Dataset:
        return self._get(Dataset, f"/datasets/{dataset_id}")

    def list_datasets(self, **filters: str) -> Iterator[Dataset]:
        """Every dataset, newest first; filters are `dataset_type` and `q`."""
        return self._pages(Dataset, "/datasets", filters)

    def get_model(self, model_id: str) -> Model:
        return self._get(Model, f"/models/{model_id}")

    def list_models(self, **filters: str) -> Iterator[Model]:
        """Every model, newest first; the filter is `model_type`."""
        return self._pages(Model, "/models", filters)

    def create_experiment(
        self,
        *,
        name: str,
        base_model_id: str,
        training_dataset_id: str,
        eval_dataset_id: str | None = None,
        training_config: dict[str, Any] | None = None,
    ) -> Experiment:
        """Create an experiment; its training begins when a worker has room for it."""
        body = {
            "name": name,
            "base_model_id": base_model_id,
            "training_dataset_id": training_dataset_id,
            "eval_dataset_id": eval_dataset_id,
            "training_config": training_config or {},
        }
        return self._create(Experiment, "/experiments", body)

    def get_experiment(self, experiment_id: str) -> Experiment:
        return self._get(Experiment, f"/experiments/{experiment_id}")

    def list_experiments(self, **filters: str) -> Iterator[Experiment]:
        """Every experiment, newest first; the filter is `status`."""
        return self._pages(Experiment, "/experiments", filters)

    def cancel_experiment(self, experiment_id: str) -> Experiment:
        """Ask for its end. 409 when it has ended already."""
        response = self._sent(lambda: self._http.post(f"/experiments/{experiment_id}/cancel"), tries=1)
        return self._read(Experiment, response)

    def resume_experiment(self, experiment_id: str) -> Experiment:
        """A new experiment that goes on from the last checkpoint of a cancelled or failed one."""
        return self._create(Experiment, f"/experiments/{experiment_id}/resume", None)

    def events(self, experiment_id: str, *, after: int = 0) -> list[Event]:
        """What happened since event number `after`, in order; the next thousand at most."""
        return self._get(list[Event], f"/experiments/{experiment_id}/events?after={after}")

    def metrics(self, experiment_id: str, *, after: int = 0) -> list[MetricPoint]:
        """The metric points since event number `after`, in order."""
        return self._get(list[MetricPoint], f"/experiments/{experiment_id}/metrics?after={after}")

    def get_evaluation(self, evaluation_id: str) -> Evaluation:
        return self._get(Evaluation, f"/evaluations/{evaluation_id}")

    def list_evaluations(self, **filters: str) -> Iterator[Evaluation]:
        """Every evaluation, newest first; the filter is `experiment_id`."""
        return self._pages(Evaluation, "/evaluations", filters)

    def _get(self, kind: type[T], path: str) -> T:
        return self._read(kind, self._sent(lambda: self._http.get(path)))

    def _create(self, kind: type[T], path: str, body: Any) -> T:
        headers = _new_key()
        return self._read(kind, self._sent(lambda: self._http.post(path, json=body, headers=headers)))

    def _pages(self, kind: type[T], path: str, filters: dict[str, str]) -> Iterator[T]:
        url = httpx2.URL(path, params=filters)
        while True:
            response = self._sent(partial(self._http.get, url))
            yield from self._read(list[kind], response)  # type: ignore[valid-type]  # a type made at run time
            following = response.links.get("next")
            if following is None:
                return
            url = httpx2.URL(following["url"])

    def _read(self, kind: type[T], response: httpx2.Response) -> T:
        try:
            return TypeAdapter(kind).validate_json(response.content)
        except ValidationError:
            raise ApiError(
                response.status_code, f"{self.base_url} does not answer as SLM Forge does; check the address."
            ) from None

    def _sent(self, send: Send, *, tries: int = TRIES) -> httpx2.Response:
        wait = FIRST_WAIT_SECONDS
        for left in reversed(range(tries)):
            try:
                response = send()
            except httpx2.UnsupportedProtocol:
                raise BadUsage(f"{self.base_url!r} is not an address that begins with http:// or https://.") from None
            except httpx2.TransportError as error:
                if not left:
                    raise Unreachable(
                        f"Nothing answers at {self.base_url} ({_why(error)}); check the address, and that "
                        "`slmforge up` runs there."
                    ) from None
            else:
                if response.status_code not in PASSING or not left:
                    break
                wait = max(wait, _asked_to_wait_seconds(response))
            self._pause(min(wait, LONGEST_WAIT_SECONDS))
            wait *= 2
        if response.is_error:
            raise ApiError(response.status_code, _detail(response))
        return response


class _WatchedFile(io.FileIO):
    """A file that says how far it has been read."""

    def __init__(self, path: Path, on_progress: Callable[[int], None]) -> None:
        super().__init__(path)
        self._on_progress = on_progress

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(-1 if size is None else size) or b""
        self._on_progress(self.tell())
        return chunk


def _new_key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


def _asked_to_wait_seconds(response: httpx2.Response) -> float:
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0


def _why(error: httpx2.TransportError) -> str:
    return str(error) or type(error).__name__


def _detail(response: httpx2.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The server at {response.url.host} answered {response.status_code} {response.reason_phrase}."
