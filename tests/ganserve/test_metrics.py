from prometheus_client import CollectorRegistry

from ganserve.metrics import SECONDS_BUCKETS, Metrics

# The names that dashboards rely on, with their labels.
CONTRACT = {
    "grpc_server_started": {"grpc_type", "grpc_service", "grpc_method"},
    "grpc_server_handled": {"grpc_type", "grpc_service", "grpc_method", "grpc_code"},
    "grpc_server_handling_seconds": {"grpc_type", "grpc_service", "grpc_method"},
    "ganserve_queue_seconds": set(),
    "ganserve_compute_seconds": {"model"},
    "ganserve_encode_seconds": {"format"},
    "ganserve_batch_images": {"model"},
    "ganserve_images": {"model", "version"},
    "ganserve_padding_images": {"model"},
    "ganserve_abandoned_images": {"reason"},
    "ganserve_rejected_requests": {"reason"},
    "ganserve_pending_images": set(),
    "ganserve_queue_size_images": set(),
    "ganserve_model_workers": {"model"},
    "ganserve_wanted_provider_info": {"device", "provider"},
    "ganserve_model_info": {"model", "version", "digest", "provider", "seed_contract"},
    "ganserve_model_ready": {"model"},
    "ganserve_model_failed_versions": {"model"},
    "ganserve_model_loads": {"model", "outcome"},
    "ganserve_model_load_seconds": {"model"},
    "ganserve_certificate_expiry_timestamp_seconds": {"certificate"},
    "ganserve_credential_reloads": {"credential", "outcome"},
    "ganserve_credential_files_refused": {"credential"},
}


def test_every_metric_has_its_name_and_labels():
    metrics = Metrics(CollectorRegistry())
    found = {
        metric._name: set(metric._labelnames)
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }
    assert found == CONTRACT


def test_buckets_reach_from_100_microseconds_to_10_seconds():
    assert (SECONDS_BUCKETS[0], SECONDS_BUCKETS[-1]) == (1e-4, 10.0)
    assert list(SECONDS_BUCKETS) == sorted(set(SECONDS_BUCKETS))


def test_refusals_and_losses_are_there_before_the_first_one():
    value = Metrics(CollectorRegistry()).registry.get_sample_value
    assert value("ganserve_rejected_requests_total", {"reason": "queue_full"}) == 0
    assert value("ganserve_abandoned_images_total", {"reason": "cancelled"}) == 0
