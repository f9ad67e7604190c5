"""Where bytes live. Nothing here knows what the bytes mean."""

from slmforge.blobs.store import (
    BlobExists,
    BlobMissing,
    BlobRef,
    BlobStat,
    BlobStore,
    InvalidKey,
    LocalBlobStore,
    open_store,
)

__all__ = [
    "BlobExists",
    "BlobMissing",
    "BlobRef",
    "BlobStat",
    "BlobStore",
    "InvalidKey",
    "LocalBlobStore",
    "open_store",
]
