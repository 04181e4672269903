import grpc
import pytest

from ganserve.client.patience import Patience

Code = grpc.StatusCode


def failure(code=Code.RESOURCE_EXHAUSTED, **metadata):
    """What a call raises."""
    pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
    pairs.insert(0, ("x-request-id", "7"))  # which servers send along
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*pairs), "said")


def test_a_busy_server_is_asked_again_when_it_says():
    assert Patience(60, attempts=2).pause_after(failure(grpc_retry_pushback_ms="250")) == 0.25


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(failure(), id="too large, or a proxy's"),
        pytest.param(failure(grpc_retry_pushback_ms="-1"), id="not again"),
        pytest.param(failure(grpc_retry_pushback_ms="soon"), id="no number"),
        pytest.param(failure(grpc_retry_pushback_ms="60001"), id="beyond the call's time"),
        pytest.param(failure(Code.INTERNAL, grpc_retry_pushback_ms="1"), id="another status"),
        pytest.param(failure(Code.UNAVAILABLE, grpc_retry_pushback_ms="1"), id="gRPC's to repeat"),
    ],
)
def test_what_would_fail_again_is_raised(error):
    with pytest.raises(grpc.RpcError) as raised:
        Patience(60, attempts=5).pause_after(error)
    assert raised.value is error


def test_no_time_is_left_once_it_is_over():
    patience = Patience(0, attempts=5)
    assert patience.remaining_seconds == 0
    with pytest.raises(grpc.RpcError):
        patience.pause_after(failure(grpc_retry_pushback_ms="1"))


def test_attempts_are_counted():
    patience, busy = Patience(60, attempts=3), failure(grpc_retry_pushback_ms="1")
    assert [patience.pause_after(busy) for _ in range(2)] == [0.001] * 2
    with pytest.raises(grpc.RpcError):
        patience.pause_after(busy)
