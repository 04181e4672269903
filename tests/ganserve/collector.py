"""A collector for traces: a real OTLP service that keeps what real exporters send."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector(TraceServiceServicer):
    """`spans` are those of all exports, in the order they came."""

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)

    def Export(  # noqa: N802 - as the proto has it
        self, request: pb.ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        """Keep the spans."""
        for part in request.resource_spans:
            self.resources.append(attributes_of(part.resource))
            for scope in part.scope_spans:
                self.spans += scope.spans
        return pb.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        """The spans of this name; of a call, METHOD alone is enough."""
        return [span for span in self.spans if span.name.rpartition("/")[2] == name]

    def beneath(self, parent: Span) -> list[str]:
        """The names of a span's children, sorted."""
        return sorted(span.name for span in self.spans if span.parent_span_id == parent.span_id)


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""
    server = grpc.server(ThreadPoolExecutor(2))
    collector = Collector()
    add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()


def attributes_of(carrier: Any) -> dict[str, Any]:
    """The attributes of a span or a resource, or of a link."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in carrier.attributes
    }
