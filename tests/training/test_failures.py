import pytest
import torch

from slmforge.blobs import BlobMissing
from slmforge.contract.events import FailureCode
from slmforge.contract.run_folder import IntegrityError
from slmforge.training.failures import RunFailure, failed_event


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RunFailure("diverged", "train again with less"), "diverged", "train again with less"),
        (IntegrityError("other bytes"), "integrity_error", "other bytes"),
        (BlobMissing("datasets/x"), "integrity_error", "datasets/x"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "micro_batch_tokens"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory", "micro_batch_tokens"),
        (MemoryError(), "out_of_memory", "micro_batch_tokens"),
        (OSError(28, "No space left on device"), "storage_unavailable", "No space left on device"),
        (RuntimeError("shapes do not match"), "internal_error", "details"),
    ],
)
def test_every_error_has_a_code_and_a_sentence(error: Exception, code: FailureCode, words: str) -> None:
    event = failed_event(error)
    assert event.code == code
    assert words in event.message
    assert event.details is not None
    assert type(error).__name__ in event.details
