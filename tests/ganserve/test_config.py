from pathlib import Path

import pytest
from pydantic import ValidationError

from ganserve.config import ServerConfig, explain_unknown

FIELDS = ServerConfig.model_fields


def test_only_the_repository_is_required():
    assert [name for name, field in FIELDS.items() if field.is_required()] == ["models"]
    assert ServerConfig(models="somewhere").models == Path("somewhere")


def test_each_setting_is_also_a_variable(monkeypatch):
    values = {
        "models": "/models",
        "device": "tensorrt",
        "reproducibility": "fast",
        "cuda_graphs": "off",
        "default_model": "digits",
        "host": "::1",
        "metrics_port": "4",
        "health_port": "5",
        "log_level": "debug",
        "log_format": "json",
        "trace_endpoint": "http://collector:4317",
        "trace_sample_ratio": "0.5",
        "version_policy": "specific",
        "versions": "digits:3",
    }
    for name in FIELDS:
        monkeypatch.setenv(f"GANSERVE_{name.upper()}", values.get(name, "3"))
    monkeypatch.setenv("GANSERVE_MAX_MESSAGE_BYTES", "2048")
    monkeypatch.setenv("GANSERVE_MAX_MODEL_BYTES", "2048")
    config = ServerConfig()
    assert config.models == Path("/models")
    assert config.device == "tensorrt"
    assert config.max_message_bytes == 2048
    assert config.versions == (("digits", 3),)
    assert config.batch_sizes == (3,)
    assert config.tls_certificate == config.token_file == Path("3")
    assert config.port == config.instances == config.queue_size == config.poll_seconds == 3


def test_variables_that_are_no_settings_are_told():
    variables = {f"GANSERVE_{name.upper()}" for name in FIELDS}
    variables |= {"PATH", "GANSERVE", "ganserve_port", "GANSERVE_MAX_BATCHSIZE", "GANSERVE_XYZZY"}
    told = "is no setting and changes nothing"
    assert explain_unknown(variables) == [
        f"GANSERVE_MAX_BATCHSIZE {told}; is GANSERVE_MAX_BATCH_SIZE meant?",
        f"GANSERVE_XYZZY {told}",
    ]


def test_what_kubernetes_sets_for_a_service_is_no_misspelt_setting():
    links = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP")
    links += ("PORT_50051_TCP_PROTO", "PORT_50051_TCP_PORT", "PORT_50051_TCP_ADDR")
    names = [f"GANSERVE_{part}{link}" for part in ("", "GPU_") for link in links]
    assert explain_unknown(names) == []


def test_a_service_of_the_servers_name_is_told_from_a_port(monkeypatch):
    monkeypatch.setenv("GANSERVE_PORT", "tcp://10.0.0.1:50051")
    with pytest.raises(ValidationError, match=r"(?s)port.*Kubernetes.*enableServiceLinks: false"):
        ServerConfig(models="m")


def test_an_argument_wins_over_a_variable(monkeypatch):
    monkeypatch.setenv("GANSERVE_PORT", "1")
    monkeypatch.setenv("GANSERVE_QUEUE_SIZE", "700")
    config = ServerConfig(models="m", port=2)
    assert (config.port, config.queue_size) == (2, 700)


def test_every_setting_says_what_it_is():
    assert all(field.description for field in FIELDS.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("models", "", id="no folder"),
        pytest.param("token_file", "", id="no file"),
        pytest.param("port", -1, id="port below 0"),
        pytest.param("port", 65536, id="port above 65535"),
        pytest.param("metrics_port", "http", id="port that is no number"),
        pytest.param("host", "", id="empty host"),
        pytest.param("device", "tpu", id="unknown device"),
        pytest.param("reproducibility", "loose", id="unknown reproducibility"),
        pytest.param("cuda_graphs", "maybe", id="unknown word about graphs"),
        pytest.param("max_batch_size", 0, id="no batch"),
        pytest.param("instances", 0, id="no instance"),
        pytest.param("instances", 1025, id="more instances than any machine has CPUs"),
        pytest.param("threads", -1, id="negative threads"),
        pytest.param("threads", 1025, id="more threads than any machine has CPUs"),
        pytest.param("encoder_threads", 1025, id="as many to encode"),
        pytest.param("queue_size", 0, id="no queue"),
        pytest.param("max_images_per_request", 0, id="no images"),
        pytest.param("chunk_bytes", 0, id="empty chunks"),
        pytest.param("deadline_seconds", 0, id="no time"),
        pytest.param("deadline_seconds", "inf", id="no deadline"),
        pytest.param("drain_seconds", -1, id="negative time"),
        pytest.param("poll_seconds", -1, id="negative pause"),
        pytest.param("poll_seconds", "nan", id="not a number"),
        pytest.param("max_wait_seconds", 61, id="waiting too long"),
        pytest.param("max_deadline_seconds", "inf", id="no longest call"),
        pytest.param("max_connection_age_seconds", 0, id="no connection"),
        pytest.param("keepalive_seconds", 0.5, id="pings without end"),
        pytest.param("max_concurrent_calls", 0, id="no calls"),
        pytest.param("rate_limit_images_per_second", 0, id="no images for anybody"),
        pytest.param("max_model_bytes", 2**31, id="more than protobuf reads"),
        pytest.param("version_policy", "oldest", id="unknown policy"),
        pytest.param("versions", "faces", id="version without number"),
        pytest.param("versions", "faces:0", id="version 0"),
        pytest.param("versions", "faces:1,:2", id="version without name"),
        pytest.param("log_level", "loud", id="unknown level"),
        pytest.param("log_format", "xml", id="unknown format"),
        pytest.param("health_port", 65536, id="no such port for health"),
        pytest.param("trace_endpoint", "localhost:4317", id="collector without scheme"),
        pytest.param("trace_endpoint", "http://localhost", id="collector without port"),
        pytest.param("trace_endpoint", "http://user:word@host:4317", id="collector with password"),
        pytest.param("trace_sample_ratio", 1.1, id="more than all calls"),
        pytest.param("colour", "red", id="unknown setting"),
    ],
)
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(ValidationError) as refusal:
        ServerConfig(**{"models": "m", name: value})
    assert [error["loc"] for error in refusal.value.errors()] == [(name,)]


def test_a_request_that_could_never_be_admitted_is_refused_at_start():
    with pytest.raises(ValidationError, match=r"max_images_per_request.*at most queue_size \(8\)"):
        ServerConfig(models="m", queue_size=8, max_images_per_request=9)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        pytest.param({"tls_key": "k"}, "expected both or none", id="key without certificate"),
        pytest.param({"tls_certificate": "c"}, "expected both or none", id="certificate alone"),
        pytest.param({"tls_client_ca": "a"}, "tls_client_ca: expected tls_cert", id="ca alone"),
        pytest.param({"port": 9090}, "port, metrics_port: expected diff", id="one port for two"),
        pytest.param({"health_port": 50051}, "port, health_port: exp", id="and for health"),
        pytest.param({"rate_limit_burst_images": 3}, "expected rate_limit_im", id="burst alone"),
        pytest.param({"version_policy": "specific"}, "versions: expected", id="no versions"),
        pytest.param({"versions": "m:1"}, "versions: expected", id="versions without policy"),
        pytest.param(
            {"cuda_graphs": "on", "device": "tensorrt"},
            "cuda_graphs: expected auto or off with the device tensorrt, got on",
            id="graphs that only CUDA has",
        ),
        pytest.param(
            {"cuda_graphs": "on"},
            "cuda_graphs: expected auto or off with the device auto, got on",
            id="graphs on a device that may be the CPU",
        ),
        pytest.param(
            {"tensorrt_cache": "engines", "device": "cuda"},
            "tensorrt_cache: expected the device tensorrt with it, got cuda",
            id="a cache for engines that are not built",
        ),
        pytest.param(
            {"deadline_seconds": 20, "max_deadline_seconds": 10},
            r"deadline_seconds: expected at most max_deadline_seconds \(10\), got 20",
            id="deadline beyond the longest",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_at_start(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        ServerConfig(models="m", **settings)


def test_versions_are_listed_by_name():
    config = ServerConfig(models="m", version_policy="specific", versions="a:1, a:20,b:c:3")
    assert config.versions == (("a", 1), ("a", 20), ("b:c", 3))


def test_batch_sizes_are_a_list_with_the_limit_as_the_largest():
    config = ServerConfig(models="m", max_batch_size=16, batch_sizes="1, 4,16")
    assert config.batch_sizes == (1, 4, 16)
    with pytest.raises(ValidationError, match=r"max_batch_size \(16\) as the largest, got 8"):
        ServerConfig(models="m", max_batch_size=16, batch_sizes="4,8")


@pytest.mark.parametrize("text", ["", "x", "1,,2", "-1", "0", "1.5", "16,0"])
def test_batch_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValidationError, match="batch_sizes"):
        ServerConfig(models="m", max_batch_size=16, batch_sizes=text)
