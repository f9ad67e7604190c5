from typing import Any

import pytest
from pydantic import ValidationError

from slmforge.blobs import BlobRef
from slmforge.contract.spec import (
    RUN_SPEC,
    ArtifactRef,
    DatasetRef,
    DirectoryBase,
    EvalData,
    EvalSpec,
    HeldOut,
    HubBase,
    Lora,
    Optimization,
    ProfileSpec,
    RunSpec,
    ScratchBase,
    TrainSpec,
)

BLOB = BlobRef(key="datasets/a/data", sha256="ab" * 32, size_bytes=10)
DATASET = DatasetRef(blob=BLOB, format="csv", layout="classification", columns={"text": "body"}, split=None)
HELD_OUT = HeldOut(fraction=0.1, max_rows=100, seed=3)
ARTIFACT = ArtifactRef(prefix="runs/a/1/artifacts/adapter", files=(BLOB,))
OPTIMIZATION = Optimization(
    epochs=1.5,
    batch_size=8,
    learning_rate=1e-3,
    warmup_ratio=0.03,
    schedule="cosine",
    weight_decay=0.1,
    max_grad_norm=1.0,
)
TRAIN = TrainSpec(
    name="Tickets, zweite Runde 🎫",
    base=HubBase(repo_id="org/model", revision="a" * 40),
    data=EvalData(train=DATASET, eval=None, held_out=HELD_OUT),
    task="classification",
    method="lora",
    lora=Lora(rank=8, alpha=16, dropout=0.05, targets="all-linear"),
    optimization=OPTIMIZATION,
    max_seq_length=512,
    micro_batch_tokens=4096,
    seed=7,
    eval_every_steps=50,
    checkpoint_every_seconds=30,
    resume_from=ARTIFACT,
)
EVALUATE = EvalSpec(
    base=DirectoryBase(path="/models/tiny", fingerprint="cd" * 32),
    tuned=ARTIFACT,
    data=EvalData(train=DATASET, eval=DATASET, held_out=None),
    task="generation",
    max_seq_length=512,
    max_new_tokens=64,
    generate_rows=200,
    bootstrap_samples=1000,
    sample_rows=8,
    seed=7,
)
SPECS: list[RunSpec] = [TRAIN, EVALUATE, ProfileSpec(dataset=DATASET)]

every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)


def plain(spec: RunSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


@every_spec
def test_a_spec_comes_back_as_it_went_out(spec: RunSpec) -> None:
    assert RUN_SPEC.validate_json(spec.model_dump_json()) == spec
    assert RUN_SPEC.validate_python(plain(spec)) == spec


@every_spec
def test_a_field_that_nobody_knows_is_refused_by_name(spec: RunSpec) -> None:
    with pytest.raises(ValidationError, match="learning_rte"):
        RUN_SPEC.validate_python({**plain(spec), "learning_rte": 1})


@every_spec
def test_a_spec_of_another_schema_is_refused(spec: RunSpec) -> None:
    with pytest.raises(ValidationError, match="schema_version"):
        RUN_SPEC.validate_python({**plain(spec), "schema_version": 2})


@every_spec
def test_nothing_is_left_to_the_reader_to_default(spec: RunSpec) -> None:
    fields = set(plain(spec)) - {"kind", "schema_version"}
    for field in fields:
        with pytest.raises(ValidationError, match="Field required"):
            RUN_SPEC.validate_python({name: value for name, value in plain(spec).items() if name != field})


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TRAIN.seed = 8  # type: ignore[misc]  # this is what is tested


@pytest.mark.parametrize("change", [{"method": "full"}, {"lora": None}])
def test_lora_settings_go_with_the_lora_method_alone(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="only with it"):
        RUN_SPEC.validate_python({**plain(TRAIN), **change})


@pytest.mark.parametrize(("eval_", "held_out"), [(DATASET, HELD_OUT), (None, None)])
def test_held_out_rows_come_from_exactly_one_place(eval_: DatasetRef | None, held_out: HeldOut | None) -> None:
    with pytest.raises(ValidationError, match="not both and not neither"):
        EvalData(train=DATASET, eval=eval_, held_out=held_out)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", float("nan")),
        ("epochs", float("inf")),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("warmup_ratio", 1.1),
        ("weight_decay", -0.1),
        ("weight_decay", float("nan")),
        ("max_grad_norm", 0),
        ("schedule", "exponential"),
    ],
)
def test_an_optimization_that_cannot_be_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Optimization.model_validate({**OPTIMIZATION.model_dump(), field: value})


def test_a_base_of_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValidationError, match="source"):
        RUN_SPEC.validate_python({**plain(TRAIN), "base": {"source": "pickle", "path": "/tmp/x"}})
    assert ScratchBase(size="scratch-1m", seed=1).source == "scratch"
