"""Models as rows: base models are shared by all, fine-tuned ones belong to whoever made them."""

import json
import re
import uuid
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from slmforge.blobs import BlobRef
from slmforge.contract.fingerprint import directory_fingerprint
from slmforge.contract.spec import ArtifactRef, Base, DirectoryBase, HubBase, ScratchBase
from slmforge.control.database import Listed, Page, paginate
from slmforge.control.errors import Invalid, NotFound
from slmforge.control.ids import model_key, new_id, parse
from slmforge.control.tables import Evaluation, Experiment, Model, Run

CATALOG = Path(__file__).with_name("catalog.json")
BASE: TypeAdapter[Base] = TypeAdapter(Base)
# What the hub itself accepts as owner/name, and the revision that may follow after an @.
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,100}))?")


def seed_catalog(session: Session) -> None:
    """Bring the rows of the catalogue's models to what the catalogue says."""
    rows = {model.slug: model for model in session.scalars(sa.select(Model).where(Model.slug.is_not(None)))}
    for entry in json.loads(CATALOG.read_text()):
        released = datetime.fromisoformat(f"{entry.pop('released')}T00:00:00+00:00")
        model = rows.get(entry["slug"])
        if model is None:
            model = Model(id=new_id(released.timestamp()), created_at=released, model_type="base", version="1")
            session.add(model)
        for column, value in entry.items():
            setattr(model, column, value)


def get(session: Session, owner: str, model_id: str) -> Model:
    """A base model by slug or id, or the owner's fine-tuned one. Raises `NotFound`."""
    model = session.scalars(sa.select(Model).where(Model.slug == model_id)).one_or_none()
    model = model or session.get(Model, parse("model", "model", model_id))
    if model is None or model.owner_id not in (None, owner):
        raise NotFound(f"There is no model {model_id!r}; GET /models lists those there are.")
    return model


def find(session: Session, owner: str, page: Page, *, model_type: str | None) -> Listed:
    """Base models and the owner's own, newest first."""
    query = sa.select(Model).where(sa.or_(Model.owner_id.is_(None), Model.owner_id == owner))
    if model_type is not None:
        query = query.where(Model.model_type == model_type)
    return paginate(session, query, Model.id, page)


def locate(reference: str) -> Base | None:
    """The base that a folder or a hub id (`owner/name`, `owner/name@revision`) names; None for any other reference.

    Reads a folder's files to fingerprint them, so no transaction may be open. Raises `Invalid` for a folder that
    holds no model.
    """
    if reference.startswith(("/", "./", "../", "~")):
        folder = Path(reference)
        if not folder.is_absolute():
            raise Invalid(f"base_model_id: give the folder {reference!r} as an absolute path.")
        if not (folder / "config.json").is_file():
            raise Invalid(f"base_model_id: {reference!r} holds no config.json; save the model with save_pretrained.")
        return DirectoryBase(path=str(folder), fingerprint=directory_fingerprint(folder))
    if found := _HUB_ID.fullmatch(reference):
        return HubBase(repo_id=found["repo"], revision=found["revision"] or "main")
    return None


def resolve_base(session: Session, owner: str, reference: str, located: Base | None, seed: int) -> tuple[Model, Base]:
    """The row and the spec of a base model; one that is used for the first time gets its row.

    Raises `NotFound` for an unknown reference and `Invalid` for a model that cannot be trained.
    """
    if located is not None:
        return _row_for(session, located), located
    model = get(session, owner, reference)
    if model.model_type != "base":
        raise Invalid(f"base_model_id: {reference!r} is a fine-tuned model; name the base model to start from.")
    if model.source["source"] == "scratch":
        return model, ScratchBase(size=model.source["size"], seed=seed)
    return model, BASE.validate_python({"revision": "main", **model.source})


def file_of(model: Model, path: str) -> BlobRef:
    """A file of a fine-tuned model by its path in the artefact. Raises `NotFound`."""
    if model.model_type == "fine_tuned":
        artifact = ArtifactRef.model_validate(model.source)
        for blob in artifact.files:
            if blob.key == f"{artifact.prefix}/{path}":
                return blob
    raise NotFound(f"The model has no file {path[:200]!r}; its files are listed in GET /models/{public_id(model)}.")


def record_fine_tuned(session: Session, experiment: Experiment, run: Run) -> Model:
    """The row of the model that a completed training has made: the latest of its name."""
    same_name = sa.and_(Model.owner_id == experiment.owner_id, Model.name == experiment.name)
    earlier = session.scalar(sa.select(sa.func.count()).where(same_name)) or 0
    session.execute(sa.update(Model).where(same_name).values(is_latest=False))
    summary = run.summary or {}
    model = Model(
        owner_id=experiment.owner_id,
        name=experiment.name,
        version=str(earlier + 1),
        model_type="fine_tuned",
        architecture=summary.get("architecture", experiment.base_model.architecture),
        parameters_count=summary.get("parameters", experiment.base_model.parameters_count),
        license=experiment.base_model.license,
        context_window=experiment.base_model.context_window,
        is_gated=experiment.base_model.is_gated,
        source=(run.artifacts or {})["model"],
        base_model_id=experiment.base_model_id,
        experiment_id=experiment.id,
    )
    session.add(model)
    session.flush()
    return model


def of_experiments(session: Session, experiment_ids: list[uuid.UUID]) -> dict[uuid.UUID, Model]:
    """The model that each experiment made, of those that have."""
    query = sa.select(Model).where(Model.experiment_id.in_(experiment_ids))
    return {model.experiment_id: model for model in session.scalars(query) if model.experiment_id}


def evaluation_ids(session: Session, model_ids: list[uuid.UUID]) -> dict[uuid.UUID, list[uuid.UUID]]:
    """The evaluations of each fine-tuned model, oldest first."""
    query = sa.select(Evaluation.model_id, Evaluation.id).where(Evaluation.model_id.in_(model_ids))
    found: dict[uuid.UUID, list[uuid.UUID]] = {}
    for model_id, evaluation_id in session.execute(query.order_by(Evaluation.id)):
        found.setdefault(model_id, []).append(evaluation_id)
    return found


def public_id(model: Model) -> str:
    """The id by which the API names the model."""
    return model_key(model.id, model.slug)


def _row_for(session: Session, base: Base) -> Model:
    source = base.model_dump(mode="json", exclude={"seed"})
    name, version = (
        (base.path, base.fingerprint[:12])
        if isinstance(base, DirectoryBase)
        else (source["repo_id"], source["revision"])
    )
    known = sa.select(Model).where(Model.model_type == "base", Model.name == name, Model.version == version)
    if model := session.scalars(known.order_by(Model.id).limit(1)).one_or_none():
        return model
    architecture, context_window = _read_config(base)
    model = Model(
        name=name,
        version=version,
        model_type="base",
        architecture=architecture,
        context_window=context_window,
        source=source,
    )
    session.add(model)
    session.flush()
    return model


def _read_config(base: Base) -> tuple[str, int | None]:
    if not isinstance(base, DirectoryBase):
        return "unknown until it is fetched", None
    config = json.loads((Path(base.path) / "config.json").read_text())
    return str((config.get("architectures") or ["unknown"])[0])[:100], config.get("max_position_embeddings")
