"""What is remembered of a call while it is answered: its id, its counts, its line in the log.

A call is answered in a task of its own and those it starts, so `current_call` finds it everywhere.
"""

import logging
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Protocol
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from ganserve.metrics import Metrics
from ganserve.transport.call_context import CallMetadata, Context

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"  # the metadata in which ids come and go
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# The label of a method's kind, by whether its requests and its responses are streams.
GRPC_TYPES = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}
_EXPECTED_CODES = (
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNAVAILABLE,
)


class CallTrace(Protocol):
    """The part of a trace that belongs to one call; times are those of `time.monotonic`."""

    trace_id: str  # as the W3C spells it, 32 hexadecimal digits
    span_id: str  # 16 of them
    exemplar: Mapping[str, str] | None  # for histograms; None where the trace is not kept

    def add_stage(self, name: str, began: float, seconds: float) -> object:
        """Tell of a part of the work that has ended."""

    def end(self, call: "Call", code: grpc.StatusCode) -> None:
        """Tell of the call's end."""


class Tracer(Protocol):
    """Begins the traces of calls."""

    def begin(self, method: str, metadata: CallMetadata, peer: str) -> CallTrace | None:
        """Begin a call's trace; `method` is SERVICE/METHOD. None where it is not to be traced."""


class Call:
    """What log and trace tell of one call."""

    __slots__ = ("began", "deadline", "images", "model", "request_id", "trace", "version")

    def __init__(self, request_id: str) -> None:
        self.began = time.perf_counter()
        self.request_id = request_id
        self.deadline = math.inf  # on time.monotonic; set unless the service is exempt
        self.trace: CallTrace | None = None
        # What is asked for, once that is known.
        self.model = ""
        self.version = 0
        self.images = 0

    @property
    def seconds(self) -> float:
        """How long it has been answered."""
        return time.perf_counter() - self.began


current_call: ContextVar[Call | None] = ContextVar("current_call", default=None)


def note_request(model: str, version: int, images: int) -> None:
    """Remember what the current call asks for, once that was found right."""
    call = current_call.get()
    if call is not None:
        call.model, call.version, call.images = model, version, images


def current_trace() -> CallTrace | None:
    """The trace of the current call, if it has one."""
    call = current_call.get()
    return None if call is None else call.trace


def current_deadline() -> float:
    """When the time of the current call is up, on time.monotonic.

    Infinity outside of calls, and in those of services that impose no deadline.
    """
    call = current_call.get()
    return math.inf if call is None else call.deadline


def current_seconds() -> float:
    """How long the current call has been answered; 0 outside of calls."""
    call = current_call.get()
    return 0.0 if call is None else call.seconds


def request_id_of(metadata: CallMetadata) -> str:
    """The id that the caller gave, or a new one where it gave none, or one that is no plain word.

    It appears in logs and answers: hence at most 128 letters, digits and `._:/+=@-`.
    """
    for name, value in metadata or ():
        if name == REQUEST_ID and isinstance(value, str) and _ACCEPTED_ID.fullmatch(value):
            return value
    return f"{random.getrandbits(128):032x}"


def split_peer(peer: str) -> tuple[str, int | None]:
    """The address and the port in a peer as gRPC names it, such as `ipv4:127.0.0.1:50051`."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return rest or peer, None
    host, _, port = rest.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else None


class Method:
    """A method: its metrics, lines in the log and traces; of `exempt` ones metrics alone."""

    def __init__(
        self,
        metrics: Metrics,
        grpc_type: str,
        service: str,
        name: str,
        *,
        tracer: Tracer | None = None,
        exempt: bool,
    ) -> None:
        self.path = f"{service}/{name}"
        self.exempt = exempt
        self._tracer = tracer
        labels = grpc_type, service, name
        # Looked up once: for a small image the look-ups would cost as much as all else here.
        self._count_started = metrics.started.labels(*labels).inc
        self._observe_seconds = metrics.handling_seconds.labels(*labels).observe
        self._handled = partial(metrics.handled.labels, *labels)
        self._count_handled: dict[grpc.StatusCode, Callable[[], None]] = {}

    def begin(self, metadata: CallMetadata, context: Context) -> Call:
        """Count a call, and give it its id, which its answer carries too."""
        if self.exempt:
            self._count_started()
            return Call("")
        call = Call(request_id_of(metadata))
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        if self._tracer is not None:
            try:
                call.trace = self._tracer.begin(self.path, metadata, context.peer())
            except Exception:  # whose fault it is not
                logger.exception("%s: a call is not traced", self.path)
        current_call.set(call)
        self._count_started()  # last: a call for which something of this failed has no end
        return call

    def end(self, call: Call, code: grpc.StatusCode, context: Context) -> None:
        """Count the call's end, and tell of it."""
        seconds = call.seconds
        if code not in self._count_handled:
            self._count_handled[code] = self._handled(code.name).inc
        self._count_handled[code]()
        self._observe_seconds(seconds, None if call.trace is None else call.trace.exemplar)
        if not self.exempt:
            if logger.isEnabledFor(logging.DEBUG):
                self._log(call, code, seconds, context)
            if call.trace is not None:
                call.trace.end(call, code)

    def _log(self, call: Call, code: grpc.StatusCode, seconds: float, context: Context) -> None:
        host, port = split_peer(context.peer())
        shown_host = f"[{host}]" if ":" in host else host  # else the port were one more group of it
        fields: dict[str, object] = {
            "method": self.path,
            "code": code.name,
            "duration_seconds": round(seconds, 6),
            "peer": host if port is None else f"{shown_host}:{port}",
        }
        if call.model:
            fields |= {"model": call.model, "version": call.version, "images": call.images}
        logger.debug(
            "%s %s %.6f s, id %s",
            *(self.path, code.name, seconds, call.request_id),
            extra={"fields": fields},
        )


def initialize_counters(metrics: Metrics, service: ServiceDescriptor) -> None:
    """Start the counters of a service's calls at 0, so that the first call is an increase.

    Of a series that starts at 1 no rate shows that first call.
    """
    for method in service.methods:
        grpc_type = GRPC_TYPES[method.client_streaming, method.server_streaming]
        labels = grpc_type, service.full_name, method.name
        metrics.started.labels(*labels)
        for code in _EXPECTED_CODES:
            metrics.handled.labels(*labels, code.name)
