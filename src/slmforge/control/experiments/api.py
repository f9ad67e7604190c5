"""Experiments over HTTP: create, look, cancel, resume, and what their runs said."""

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse

from slmforge.control import idempotency
from slmforge.control.dependencies import PageAsked, Reading, Store, TheDatabase, Writing, add_page_headers
from slmforge.control.experiments import service as experiments
from slmforge.control.experiments.schemas import (
    EventRead,
    ExperimentCreate,
    ExperimentRead,
    MetricRead,
    event_read,
    experiment_read,
    log_line,
)
from slmforge.control.experiments.stream import EventStream
from slmforge.control.identity import Caller
from slmforge.control.ids import ExperimentId
from slmforge.control.models import service as models
from slmforge.control.problems import responses
from slmforge.control.runs import service as runs
from slmforge.control.tables import Experiment

router = APIRouter(prefix="/experiments", tags=["experiments"])

After = Annotated[int, Query(ge=0, description="Only what is numbered above this.")]
Limit = Annotated[int, Query(ge=1, le=10_000)]


@router.post("", status_code=201, responses=responses(400, 404, 409))
def create(
    body: ExperimentCreate, session: Writing, store: Store, caller: Caller, key: idempotency.Key = None
) -> ExperimentRead:
    """Create an experiment. It is answered at once; the training begins when a worker has room for it."""
    wanted = experiments.Wanted(
        name=body.name,
        description=body.description,
        goal=body.goal,
        base_model_id=body.base_model_id,
        located=models.locate(body.base_model_id),
        training_dataset_id=body.training_dataset_id,
        eval_dataset_id=body.eval_dataset_id,
        training_config=body.training_config,
        compute=body.compute,
    )
    return idempotency.once(
        session,
        caller,
        key,
        body.model_dump_json(),
        ExperimentRead,
        lambda: experiment_read(experiments.create(session, caller, wanted), [], None, store.url),
    )


@router.get("", responses=responses(400))
def list_experiments(
    request: Request,
    response: Response,
    session: Reading,
    store: Store,
    caller: Caller,
    page: PageAsked,
    status: Annotated[Literal["created", "running", "completed", "failed", "cancelled"] | None, Query()] = None,
) -> list[ExperimentRead]:
    """The experiments, newest first."""
    listed = experiments.find(session, caller, page, status=status)
    add_page_headers(request, response, listed)
    ids = [experiment.id for experiment in listed.rows]
    evaluations, made = experiments.evaluations_of(session, ids), models.of_experiments(session, ids)
    return [experiment_read(e, evaluations.get(e.id, []), made.get(e.id), store.url) for e in listed.rows]


@router.get(
    "/{experiment_id}",
    response_model=ExperimentRead,
    responses={304: {"description": "Unchanged."}, **responses(404)},
)
def get_experiment(
    request: Request, response: Response, session: Reading, store: Store, caller: Caller, experiment_id: ExperimentId
) -> ExperimentRead | Response:
    """One experiment: status, progress, settings, lineage, and what it led to."""
    experiment = experiments.get(session, caller, experiment_id)
    evaluations = experiments.evaluations_of(session, [experiment.id]).get(experiment.id, [])
    versions = [experiment.run.version, *(evaluation.run.version for evaluation in evaluations)]
    etag = f'W/"{".".join(map(str, versions))}"'
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    made = models.of_experiments(session, [experiment.id]).get(experiment.id)
    return experiment_read(experiment, evaluations, made, store.url)


@router.post("/{experiment_id}/cancel", responses=responses(404, 409))
def cancel(session: Writing, store: Store, caller: Caller, experiment_id: ExperimentId) -> ExperimentRead:
    """Stop the training with a checkpoint and free its process. The status follows within seconds."""
    return experiment_read(experiments.cancel(session, caller, experiment_id), [], None, store.url)


@router.post("/{experiment_id}/resume", status_code=201, responses=responses(404, 409))
def resume(
    session: Writing, store: Store, caller: Caller, experiment_id: ExperimentId, key: idempotency.Key = None
) -> ExperimentRead:
    """A new experiment that goes on from the last checkpoint of a cancelled or failed one."""
    return idempotency.once(
        session,
        caller,
        key,
        f"resume {experiment_id}",
        ExperimentRead,
        lambda: experiment_read(experiments.resume(session, caller, experiment_id), [], None, store.url),
    )


@router.get(
    "/{experiment_id}/events",
    response_model=list[EventRead],
    responses={
        200: {"content": {"text/event-stream": {"example": 'id: 1\nevent: created\ndata: {"number": 1, …}\n\n'}}},
        **responses(404),
    },
)
def events(
    database: TheDatabase,
    caller: Caller,
    experiment_id: ExperimentId,
    after: After = 0,
    limit: Limit = 1000,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> list[EventRead] | Response:
    """What happened, numbered without gaps. `Accept: text/event-stream` keeps the answer open until the end."""
    with database.read() as session:
        experiment = experiments.get(session, caller, experiment_id)
        if "text/event-stream" in accept:
            return EventStream(database, experiment.run_id, after if last_event_id is None else last_event_id)
        return [event_read(e) for e in runs.events(session, experiment.run_id, after=after, limit=limit)]


@router.get("/{experiment_id}/metrics", responses=responses(404))
def metrics(
    session: Reading, caller: Caller, experiment_id: ExperimentId, after: After = 0, limit: Limit = 10_000
) -> list[MetricRead]:
    """The metric points of the training, in order; ask for those after the last `number` you have."""
    run_id = experiments.get(session, caller, experiment_id).run_id
    found = runs.events(session, run_id, after=after, limit=limit, types=("measured",))
    return [MetricRead(number=e.number, at=e.at, step=e.payload["step"], values=e.payload["values"]) for e in found]


@router.get(
    "/{experiment_id}/logs",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": "2026-01-11 09:31:08 started on cpu\n"}}}, **responses(404)},
)
def logs(session: Reading, caller: Caller, experiment_id: ExperimentId, after: After = 0, limit: Limit = 10_000) -> str:
    """The course of the training as lines of text."""
    experiment: Experiment = experiments.get(session, caller, experiment_id)
    found = runs.events(session, experiment.run_id, after=after, limit=limit)
    return "".join(f"{line}\n" for event in found if (line := log_line(event)))
