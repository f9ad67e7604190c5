"""A stored blob as an HTTP answer: whole or in part, with an ETag, under a name that cannot do harm."""

import re
from collections.abc import Iterator
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from slmforge.blobs import BlobRef, BlobStore

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def blob_response(request: Request, store: BlobStore, blob: BlobRef, filename: str) -> Response:
    """The bytes of `blob`, honouring `If-None-Match`, `If-Range` and a single `Range` (RFC 9110, 13 and 14).

    Several ranges in one header are answered with the whole, as the RFC allows.
    """
    etag = f'"{blob.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": content_disposition(filename),
        "X-Content-Type-Options": "nosniff",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range", "")
    if request.headers.get("if-range", etag) != etag:
        asked = ""
    start, stop, status = 0, blob.size_bytes, 200
    if found := _RANGE.fullmatch(asked.strip()):
        start, stop = _bounds(found[1], found[2], blob.size_bytes)
        if start >= stop:
            headers["Content-Range"] = f"bytes */{blob.size_bytes}"
            return Response(status_code=416, headers=headers)
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size_bytes}"
    headers["Content-Length"] = str(stop - start)
    chunks = _first(store.open(blob.key, start), stop - start)
    return StreamingResponse(chunks, status_code=status, headers=headers, media_type="application/octet-stream")


def content_disposition(filename: str) -> str:
    """An attachment under `filename` (RFC 6266): plain letters for old clients, the true name for the others."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def _bounds(first: str, last: str, size: int) -> tuple[int, int]:
    if first:
        return int(first), min(size, int(last) + 1 if last else size)
    return (max(0, size - int(last)), size) if last and int(last) else (size, size)


def _first(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for chunk in chunks:
        if count <= len(chunk):
            yield chunk[:count]
            return
        count -= len(chunk)
        yield chunk
