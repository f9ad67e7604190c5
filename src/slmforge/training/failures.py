"""How a run fails: a code from the closed list and a sentence for a person.

What goes wrong elsewhere (storage, memory, spec) is translated here, once, for `__main__`.
"""

import traceback

from pydantic import ValidationError

from slmforge.blobs import BlobMissing
from slmforge.contract.events import Failed, FailureCode
from slmforge.contract.run_folder import IntegrityError


class RunFailure(Exception):
    """The run cannot go on; the message says what happened and what to do next."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def failed_event(error: BaseException) -> Failed:
    """The terminal event for `error`, with its traceback for an engineer."""
    code, message = _explain(error)
    return Failed(code=code, message=message, details="".join(traceback.format_exception(error)))


def _explain(error: BaseException) -> tuple[FailureCode, str]:
    match error:
        case RunFailure():
            return error.code, str(error)
        case ValidationError():
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the top"
            return (
                "invalid_spec",
                f"the run's spec does not fit at {place}: {first['msg']}; create the experiment again",
            )
        case IntegrityError():
            return "integrity_error", str(error)
        case BlobMissing():
            return "integrity_error", f"{error.args[0]} is no longer in storage; upload the file or train again"
        case MemoryError() | RuntimeError() if ran_out_of_memory(error):
            return "out_of_memory", OUT_OF_MEMORY
        case OSError():
            return (
                "storage_unavailable",
                f"storage or disk did not answer: {error.strerror or error}; start the run again",
            )
        case _:
            return "internal_error", "an error of ours stopped the run; its traceback is in the details"


OUT_OF_MEMORY = (
    "the device ran out of memory; lower micro_batch_tokens first (the result does not change), then max_seq_length, "
    "or train with LoRA, or choose a smaller model"
)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get memory, on whichever device."""
    # torch raises OutOfMemoryError on an accelerator and a bare RuntimeError from its CPU allocator.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
