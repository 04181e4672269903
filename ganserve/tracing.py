"""OpenTelemetry: calls, their stages and their batches become spans, sent by OTLP.

Imported only where traces are asked for. Names and values follow the semantic conventions for RPC
(https://opentelemetry.io/docs/specs/semconv/rpc/), release candidate of 2025; those of our own
begin with `ganserve.`. Seeds, pixels and metadata never go into a span.
"""

import logging
import random
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version as installed_version

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from ganserve.batching.entries import Batch, Part
from ganserve.calls import Call, split_peer
from ganserve.transport.call_context import CallMetadata

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 300.0
# Those that tell of the server's troubles, not of its callers' mistakes.
_ERROR_CODES = {
    *(grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED),
    *(grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS),
}
_PROPAGATED = ("traceparent", "tracestate")


class Tracing:
    """Sends spans in the background until `close`; what fails there never reaches a call.

    A batch belongs to the traces of several calls, hence to none: it is a trace of its own, linked
    with the stage `compute` of each call that is traced, both ways, and kept where one of them is.
    """

    def __init__(self, endpoint: str, sample_ratio: float) -> None:
        """Begin; nothing is sent yet.

        Args:
            endpoint: where the collector listens: http://HOST:PORT, or https.
            sample_ratio: the share of calls to trace where the caller's context does not decide.
        """
        self._log_limiter = _LogLimiter()
        self._log_limiter.begin()
        self._exporter = OTLPSpanExporter(endpoint)
        self._processor = BatchSpanProcessor(self._exporter)
        self._closed = False
        resource = Resource.create(
            {"service.name": "ganserve", "service.version": installed_version("ganserve")}
        ).merge(OTELResourceDetector().detect())  # what the environment says goes first
        self._sample_ratio = sample_ratio
        self._calls = self._make_tracer(ParentBased(ALWAYS_ON), resource)
        self._batches = self._make_tracer(ALWAYS_ON, resource)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: CallMetadata, peer: str) -> "TracedCall | None":
        """Begin the span of a call, within the caller's trace if it names one; None where none is.

        Whether to trace a call whose caller does not say is decided here and not by a sampler: a
        span that is not kept would cost ten times what the decision does.
        """
        carrier = {
            name: value
            for name, value in metadata or ()
            if name in _PROPAGATED and isinstance(value, str)
        }
        # Begun with an empty context, for the current one is that of no call.
        parent = self._propagator.extract(carrier, Context()) if carrier else Context()
        callers_say = carrier and get_current_span(parent).get_span_context().is_valid
        if not callers_say and random.random() >= self._sample_ratio:  # noqa: S311 - no secret
            return None
        address, port = split_peer(peer)
        attributes: dict[str, str | int] = {
            "rpc.system.name": "grpc",
            "rpc.method": method,
            "network.peer.address": address,
        }
        if port is not None:
            attributes["network.peer.port"] = port
        span = self._calls.start_span(
            method, parent, kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        )
        return TracedCall(self._calls, span)

    def note_batch(self, model: str, batch: Batch, error: Exception | None = None) -> None:
        """Tell of a model call, and of the time that its rows waited for it."""
        traced_parts = [
            (part, traced) for part in batch.parts if (traced := _traced(part)) is not None
        ]
        if not traced_parts:
            return
        rows = batch.rows
        offset = time.time_ns() - time.monotonic_ns()
        span = self._batches.start_span(
            "batch",
            Context(),
            attributes={
                "ganserve.model.name": model,
                "ganserve.batch.images": rows,
                "ganserve.batch.requests": len(batch.parts),
                "ganserve.batch.padding_images": max(len(batch.images) - rows, 0),
            },
            start_time=offset + int(batch.started_at * 1e9),
        )
        for (entry, start, stop), traced in traced_parts:
            if start == 0:
                waited = batch.started_at - entry.admitted_at
                traced.add_stage("queue", entry.admitted_at, waited)
            stage = traced.add_stage(
                *("compute", batch.started_at, batch.seconds),
                links=[Link(span.get_span_context())],
                attributes={"ganserve.images": stop - start},
            )
            span.add_link(stage.get_span_context())
        if error is not None:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__qualname__)
        span.end(offset + int((batch.started_at + batch.seconds) * 1e9))

    def close(self, seconds: float) -> None:
        """Send what is left, for at most so many seconds; blocks meanwhile."""
        if self._closed:
            return
        self._closed = True
        sending = threading.Thread(target=self._processor.shutdown, daemon=True, name="traces")
        sending.start()
        sending.join(seconds)
        if sending.is_alive():
            logger.warning("the last traces could not be sent within %g s", seconds)
            self._exporter.shutdown()  # ends the attempt that is under way
            sending.join(1.0)
        self._log_limiter.end()

    def give_up(self) -> None:
        """Have a `close` in another thread end now, whatever is left."""
        self._exporter.shutdown()

    def _make_tracer(self, sampler: Sampler, resource: Resource) -> Tracer:
        provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        return provider.get_tracer("ganserve", installed_version("ganserve"))


class TracedCall:
    """A call's span, and those of its stages beneath it."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        context = span.get_span_context()
        self.trace_id = format_trace_id(context.trace_id)
        self.span_id = format_span_id(context.span_id)
        self.exemplar: Mapping[str, str] | None = None
        if context.trace_flags.sampled:
            self.exemplar = {"trace_id": self.trace_id, "span_id": self.span_id}
        self._tracer = tracer
        self._span = span
        # The same for all of a call's stages, or they would seem to shift against each other.
        self._offset = time.time_ns() - time.monotonic_ns()

    def add_stage(
        self,
        name: str,
        began: float,  # on time.monotonic
        seconds: float,
        *,
        links: list[Link] | None = None,
        attributes: Attributes = None,
    ) -> Span:
        """Tell of a part of the work that has ended."""
        start = self._offset + int(began * 1e9)
        parent = set_span_in_context(self._span, Context())
        stage = self._tracer.start_span(
            name, parent, links=links, attributes=attributes, start_time=start
        )
        stage.end(start + int(seconds * 1e9))
        return stage

    def end(self, call: Call, code: grpc.StatusCode) -> None:
        """Tell of the call's end."""
        if self._span.is_recording():
            self._span.set_attribute("rpc.response.status_code", code.name)
            self._span.set_attribute("ganserve.request_id", call.request_id)
            if call.model:
                self._span.set_attribute("ganserve.model.name", call.model)
                self._span.set_attribute("ganserve.model.version", call.version)
                self._span.set_attribute("ganserve.images", call.images)
            if code in _ERROR_CODES:
                self._span.set_attribute("error.type", code.name)
                self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _traced(part: Part) -> TracedCall | None:
    """The call that a part of a batch belongs to, if its trace is kept."""
    traced = part.entry.trace
    if traced is None or traced.exemplar is None:
        return None
    assert isinstance(traced, TracedCall)
    return traced


class _LogLimiter(logging.Handler):
    """Passes on what OpenTelemetry logs, but seldom: a collector that is away is no news each time.

    Of warnings and of errors one line each is logged in five minutes.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_at: dict[int, float] = {}  # by level, on time.monotonic

    def begin(self) -> None:
        """Listen instead of those that listened so far."""
        source = logging.getLogger("opentelemetry")
        source.propagate = False
        source.addHandler(self)

    def end(self) -> None:
        """Leave everything as it was."""
        source = logging.getLogger("opentelemetry")
        source.removeHandler(self)
        source.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on, unless another was not long ago."""
        now = time.monotonic()
        if now < self._next_at.get(record.levelno, 0.0):
            return
        self._next_at[record.levelno] = now + _SECONDS_BETWEEN_LINES
        logger.warning("traces: %s", record.getMessage())
