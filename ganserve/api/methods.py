"""What is counted, logged and traced of each call of a method."""

import logging
from collections.abc import Callable
from functools import partial

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from ganserve.calls import REQUEST_ID, Call, Tracer, current_call, request_id_of, split_peer
from ganserve.metrics import Metrics
from ganserve.transport.call_context import CallMetadata, Context

logger = logging.getLogger("ganserve.calls")  # the documented name, for rules about the log

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


def initialize_series(metrics: Metrics, service: ServiceDescriptor) -> None:
    """Start the series of a service's calls at 0, so that the first call is an increase.

    Of a series that starts at 1 no rate shows that first call, and no quantile its time.
    """
    for method in service.methods:
        grpc_type = GRPC_TYPES[method.client_streaming, method.server_streaming]
        labels = grpc_type, service.full_name, method.name
        metrics.started.labels(*labels)
        metrics.handling_seconds.labels(*labels)
        for code in _EXPECTED_CODES:
            metrics.handled.labels(*labels, code.name)
