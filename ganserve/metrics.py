"""Every metric of the server, in one class."""

from collections.abc import Sequence
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ganserve.errors import REQUEST_ERRORS
from ganserve.single_writer_metrics import SingleWriterCounter, SingleWriterHistogram

# 100 microseconds to 10 seconds.
SECONDS_BUCKETS = (
    *(1e-4, 2.5e-4, 5e-4),
    *(1e-3, 2.5e-3, 5e-3),
    *(0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
IMAGES_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

AbandonReason = Literal["cancelled", "deadline", "failed"]
_CALL_LABELS = ("grpc_type", "grpc_service", "grpc_method")


class Metrics:
    """Every metric of the server. Labels take values from small fixed sets."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        # Those of calls are written by the event loop alone, at every call.
        def call_counter(name: str, what: str, *labels: str) -> SingleWriterCounter:
            return SingleWriterCounter(name, what, labels, registry=registry)

        def call_histogram(
            name: str, what: str, *labels: str, buckets: Sequence[float] = SECONDS_BUCKETS
        ) -> SingleWriterHistogram:
            return SingleWriterHistogram(name, what, labels, registry=registry, buckets=buckets)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(name, what, labels, registry=registry)

        self.started = call_counter("grpc_server_started_total", "Calls begun.", *_CALL_LABELS)
        self.handled = call_counter(
            "grpc_server_handled_total", "Calls ended, by their status.", *_CALL_LABELS, "grpc_code"
        )
        self.handling_seconds = call_histogram(
            "grpc_server_handling_seconds", "From a call's begin to its end.", *_CALL_LABELS
        )
        self.queue_seconds = call_histogram(
            "ganserve_queue_seconds", "From admission to the first model call with an image of it."
        )
        self.compute_seconds = call_histogram(
            "ganserve_compute_seconds", "One model call, on a GPU with its turn there.", "model"
        )
        self.encode_seconds = call_histogram(
            "ganserve_encode_seconds", "Encoding the images of one message.", "format"
        )
        self.batch_images = call_histogram(
            "ganserve_batch_images", "Images in one model call.", "model", buckets=IMAGES_BUCKETS
        )
        self.images = call_counter(
            "ganserve_images_total", "Images answered with.", "model", "version"
        )
        self.padding_images = call_counter(
            "ganserve_padding_images_total", "Images made only to fill a batch up.", "model"
        )
        self.abandoned_images = counter(
            "ganserve_abandoned_images_total",
            "Images admitted that never reached the model, for nobody waited for them any more.",
            "reason",
        )
        for reason in get_args(AbandonReason):  # from 0 on, so that the first one is an increase
            self.abandoned_images.labels(reason)
        self.rejected_requests = counter(
            "ganserve_rejected_requests_total", "Requests refused.", "reason"
        )
        for error in REQUEST_ERRORS:
            self.rejected_requests.labels(error.reason)
        self.pending_images = gauge("ganserve_pending_images", "Images waiting for a model.")
        self.queue_size_images = gauge(
            "ganserve_queue_size_images", "Images that may wait for a version, --queue-size."
        )
        self.model_workers = gauge(
            "ganserve_model_workers", "Model calls of a version that may run at once.", "model"
        )
        self.wanted_provider_info = gauge(
            "ganserve_wanted_provider_info",
            "1 for the execution provider that --device stands for.",
            *("device", "provider"),
        )
        self.model_info = gauge(
            "ganserve_model_info",
            "1 for each version that serves.",
            *("model", "version", "digest", "provider", "seed_contract"),
        )
        self.model_ready = gauge(
            "ganserve_model_ready", "1 where some version of the model serves, else 0.", "model"
        )
        self.model_loads = counter(
            "ganserve_model_loads_total", "Versions loaded, or not.", "model", "outcome"
        )
        self.model_failed_versions = gauge(
            "ganserve_model_failed_versions",
            "Versions on disk that could not be loaded.",
            "model",
        )
        self.model_load_seconds = Histogram(
            "ganserve_model_load_seconds",
            "Reading, checking and warming up a version.",
            ["model"],
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self.certificate_expiry = gauge(
            "ganserve_certificate_expiry_timestamp_seconds",
            "When a certificate in use expires, in seconds since 1970.",
            "certificate",
        )
        self.credential_reloads = counter(
            "ganserve_credential_reloads_total",
            "Changed files of certificates or tokens, taken over or refused.",
            *("credential", "outcome"),
        )
        self.credential_files_refused = gauge(
            "ganserve_credential_files_refused",
            "1 where the files' newest content was refused, so that another is in use, else 0.",
            "credential",
        )
