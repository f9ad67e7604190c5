"""`python -m slmforge.training RUN_FOLDER`: carry out one attempt of one run, and always end it with one last event.

RUN_FOLDER is the URL or path of `<store>/runs/<run>/<attempt>`. The first event claims the attempt, so a second process
for it leaves without a trace. Exit code 0 for finished and cancelled, 1 for failed. What is printed is a log.
"""

import os
import platform
import re
import sys

from slmforge.blobs import BlobMissing, open_store
from slmforge.contract.events import Cancelled, Choice, Emit, Finished, KnownEvent, Started
from slmforge.contract.run_folder import AlreadyClaimed, EventWriter, RunFolder
from slmforge.contract.spec import ProfileSpec, RunSpec, TrainSpec
from slmforge.training.failures import RunFailure, failed_event
from slmforge.training.lineage import installed_versions
from slmforge.training.stopping import Interrupted, StopRequest

# OpenMP threads wait for each other by spinning, and starve beside a busy neighbour: two threads on a model of 0.9M
# parameters fell from 23,900 to 1,700 tokens/s. With a short spin they do 21,400, and 10,000 beside a neighbour.
SPIN_COUNT = "2000"
_RUN_FOLDER = re.compile(r"(?P<store>.+)/runs/(?P<run>[^/]+)/(?P<attempt>[1-9][0-9]*)/?")


def main(arguments: list[str]) -> int:
    """Run the attempt and return the exit code."""
    place = _RUN_FOLDER.fullmatch(arguments[0]) if len(arguments) == 1 else None
    if place is None:
        sys.stderr.write("usage: python -m slmforge.training STORE/runs/RUN/ATTEMPT\n")
        return 2
    stop = StopRequest()
    stop.install()
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # read by OpenMP when torch is first imported
    folder = RunFolder(open_store(place["store"]), place["run"], int(place["attempt"]))
    writer = EventWriter(folder)

    def emit(event: KnownEvent) -> None:
        with stop.deferred():  # an event is published whole or not at all
            writer(event)

    try:
        return _attempt(folder, emit, writer, stop)
    except AlreadyClaimed:
        return 0


def _attempt(folder: RunFolder, emit: Emit, writer: EventWriter, stop: StopRequest) -> int:
    failed = False
    try:
        last: KnownEvent
        try:
            last = _carry_out(_read_spec(folder), folder, emit, stop)
        except AlreadyClaimed:
            raise
        except Exception as error:  # the edge: whatever went wrong becomes the attempt's last event
            failed, last = True, failed_event(error)
            sys.stderr.write(last.details or last.message)
        emit(last)
    except Interrupted as request:
        # Only the first request interrupts, so nothing comes between the run and this last word.
        if not writer.ended:
            writer(Cancelled(step=request.step))
    return int(failed)


def _read_spec(folder: RunFolder) -> RunSpec:
    try:
        return folder.read_spec()
    except BlobMissing:
        raise RunFailure("invalid_spec", f"{folder.url} holds no spec.json; start the run again") from None


def _carry_out(spec: RunSpec, folder: RunFolder, emit: Emit, stop: StopRequest) -> Finished:
    """Claim the attempt with its first event, then do what the spec asks. Heavy imports wait until they are needed."""
    if isinstance(spec, ProfileSpec):
        from slmforge.data.profile import profile
        from slmforge.data.reading import read_dataset

        emit(_started({}))
        found = profile(read_dataset(folder.store, spec.dataset))
        return Finished(summary=found.model_dump(mode="json"), artifacts={})
    from slmforge.training.model import choose_for_this_machine

    if isinstance(spec, TrainSpec):
        emit(_started(choose_for_this_machine(spec.method)))
        from slmforge.training.job import train

        return train(spec, folder, emit, stop)
    emit(_started(choose_for_this_machine("inference")))
    from slmforge.training.evaluate import evaluate

    return evaluate(spec, folder.store, folder, emit)


def _started(choices: dict[str, Choice]) -> Started:
    device = choices["device"].value if choices else "cpu"
    return Started(host=platform.node(), pid=os.getpid(), device=device, choices=choices, versions=installed_versions())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
