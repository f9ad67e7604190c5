"""The caller's errors. Services raise them without knowing of HTTP; `app.py` renders them, once."""


class AppError(Exception):
    """Something the caller can act on: `message` is one sentence that says what happened and what to do next."""

    status = 400
    code = "invalid"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(AppError):
    """The request contradicts itself or the data it names."""


class NotFound(AppError):
    """There is no such thing, or it is somebody else's: the answer does not tell which."""

    status = 404
    code = "not_found"


class Conflict(AppError):
    """The thing exists, but its state does not allow this."""

    status = 409
    code = "conflict"


class TooLarge(AppError):
    """More bytes than the settings allow."""

    status = 413
    code = "too_large"


class UnsupportedFormat(AppError):
    """A file of a kind that we do not read."""

    status = 415
    code = "unsupported_format"


class Unavailable(AppError):
    """The database or the storage is away; the caller should try again."""

    status = 503
    code = "unavailable"
