"""What can go wrong for a client, each with the exit code of the command that meets it. Imports nothing heavy."""

from http import HTTPStatus


class ClientError(Exception):
    """The message is a sentence for the person at the keyboard."""

    exit_code = 1


class BadUsage(ClientError):
    """What was asked cannot be done as it was asked."""

    exit_code = 2


class ApiError(ClientError):
    """The service refused or failed; `detail` is its own sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self.exit_code = BadUsage.exit_code


class Unreachable(ClientError):
    """Nobody answers at the address."""


class ServerFailed(ClientError):
    """A server that we started ended before it could serve."""
