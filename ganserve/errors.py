"""The failures that a caller may see, each with its gRPC status and details."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from ganserve.plain_text import cut, printable


class StartupError(RuntimeError):
    """The server cannot start; the message says why and what to do."""


class ModelError(ValueError):
    """An artifact that cannot be served; the message names the file and what is wrong in it.

    `problem` alone is for callers, who need not know where files lie. It may quote the file, which
    is not ours to trust, so it is one short line of printable characters.
    """

    def __init__(self, problem: str, path: Path | None = None) -> None:
        self.problem = printable(problem)
        super().__init__(self.problem if path is None else f"{path}: {self.problem}")


class UnreadableModel(ModelError):
    """The artifact cannot be read, which says nothing of what is in it."""


class ProviderUnavailable(ModelError):
    """The execution provider that was asked for is not the one in use."""


class RequestError(Exception):
    """A call that cannot be answered, for a reason its caller may know."""

    code: ClassVar[grpc.StatusCode]
    reason: ClassVar[str]  # the label in ganserve_rejected_requests_total

    def details(self) -> Sequence[Message]:
        """Messages of google.rpc.error_details for the caller's program."""
        return ()


class InvalidRequest(RequestError):
    """A field does not hold what it must."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "invalid_argument"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def details(self) -> Sequence[Message]:
        """Name the field."""
        violation = BadRequest.FieldViolation(field=self.field, description=cut(self.problem))
        return (BadRequest(field_violations=[violation]),)


class UnknownModel(RequestError):
    """There is no such model, or no such version of it."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "unknown_model"


class Overloaded(RequestError):
    """The queue is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "queue_full"

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds

    def details(self) -> Sequence[Message]:
        """Say when to try again."""
        delay = Duration()
        delay.FromNanoseconds(int(self.retry_seconds * 1e9))
        return (RetryInfo(retry_delay=delay),)


class RateLimited(Overloaded):
    """The client has had its share."""

    reason = "rate_limited"


class TooManyCalls(Overloaded):
    """As many calls as allowed are under way."""

    reason = "too_many_calls"


class Unauthenticated(RequestError):
    """The call carries no token, or none that is known."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "unauthenticated"


class Loading(RequestError):
    """The model is not ready, but may become so."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "loading"


class ShuttingDown(RequestError):
    """The server takes no more calls."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "shutting_down"


class DeadlineExceeded(RequestError):
    """The call's time is up."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "deadline_exceeded"


class UnfinishedRequest(RequestError):
    """The request did not come whole."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "unfinished"


class InternalError(RequestError):
    """Our own mistake; the caller sees the id under which it was logged."""

    code = grpc.StatusCode.INTERNAL
    reason = "internal"


# Those that are the request's fault or the moment's, not ours.
REQUEST_ERRORS = (
    InvalidRequest,
    UnknownModel,
    Overloaded,
    RateLimited,
    TooManyCalls,
    Unauthenticated,
    Loading,
    ShuttingDown,
    DeadlineExceeded,
    UnfinishedRequest,
)


def to_status(error: RequestError) -> grpc.Status:
    """Build the status with its details, as `context.abort_with_status` takes it."""
    number, _ = error.code.value
    status = Status(code=number, message=cut(str(error)))
    for detail in error.details():
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    answer: Any = rpc_status.to_status(status)  # a named tuple
    if isinstance(error, Overloaded):
        # For gRPC's own retries, which do not read RetryInfo. Not all callers at the same time.
        spread = random.uniform(1.0, 1.5)  # noqa: S311 - no secret
        pushback = "grpc-retry-pushback-ms", str(math.ceil(error.retry_seconds * spread * 1000))
        answer = answer._replace(trailing_metadata=(*answer.trailing_metadata, pushback))
    built: grpc.Status = answer
    return built
