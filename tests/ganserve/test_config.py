from pathlib import Path

import pytest
from pydantic import ValidationError

from ganserve.config import ServerConfig

FIELDS = ServerConfig.model_fields


def test_only_the_repository_is_required():
    assert [name for name, field in FIELDS.items() if field.is_required()] == ["models"]
    assert ServerConfig(models="somewhere").models == Path("somewhere")


def test_each_setting_is_also_a_variable(monkeypatch):
    values = {
        "models": "/models",
        "device": "cpu",
        "default_model": "digits",
        "host": "::1",
        "log_level": "debug",
    }
    for name in FIELDS:
        monkeypatch.setenv(f"GANSERVE_{name.upper()}", values.get(name, "3"))
    monkeypatch.setenv("GANSERVE_MAX_MESSAGE_BYTES", "2048")
    config = ServerConfig()
    assert config.models == Path("/models")
    assert config.device == "cpu"
    assert config.max_message_bytes == 2048
    assert config.port == config.instances == config.queue_size == config.poll_seconds == 3


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
        pytest.param("port", -1, id="port below 0"),
        pytest.param("port", 65536, id="port above 65535"),
        pytest.param("metrics_port", "http", id="port that is no number"),
        pytest.param("host", "", id="empty host"),
        pytest.param("device", "tpu", id="unknown device"),
        pytest.param("max_batch_size", 0, id="no batch"),
        pytest.param("instances", 0, id="no instance"),
        pytest.param("threads", -1, id="negative threads"),
        pytest.param("queue_size", 0, id="no queue"),
        pytest.param("max_images_per_request", 0, id="no images"),
        pytest.param("chunk_bytes", 0, id="empty chunks"),
        pytest.param("deadline_seconds", 0, id="no time"),
        pytest.param("deadline_seconds", "inf", id="no deadline"),
        pytest.param("drain_seconds", -1, id="negative time"),
        pytest.param("poll_seconds", 0, id="polling without pause"),
        pytest.param("poll_seconds", "nan", id="not a number"),
        pytest.param("max_wait_seconds", 61, id="waiting too long"),
        pytest.param("log_level", "loud", id="unknown level"),
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
