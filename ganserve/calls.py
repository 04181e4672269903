"""What is remembered of a call while it is answered: its id, its deadline, what it asks for.

A call is answered in a task of its own and those it starts, so `current_call` finds it everywhere.
"""

import math
import random
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol
from urllib.parse import unquote

import grpc

from ganserve.transport.call_context import CallMetadata

REQUEST_ID = "x-request-id"  # the metadata in which ids come and go
_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


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
    """One call: what log and trace tell of it, and when its time is up."""

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
