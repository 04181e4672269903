"""What a client is told once, the same for threads and event loops."""

import math
from dataclasses import dataclass

import grpc

from ganserve.addresses import check_address
from ganserve.client.channel import make_channel_options
from ganserve.client.channel_security import ChannelSecurity
from ganserve.client.failures import CallError, to_call_error
from ganserve.client.patience import MOST_ATTEMPTS, Patience

_LONGEST_TIMEOUT = 1e9  # seconds, 31 years; gRPC's clock ends somewhere beyond


@dataclass(frozen=True)
class ClientSettings:
    """The arguments of `Client` and `AsyncClient`, which tell what they mean.

    Raises:
        ValueError: `address` is none, or `timeout_seconds` or `hedge_after_seconds` is no time.
    """

    address: str
    model: str
    timeout_seconds: float
    security: ChannelSecurity
    retries: bool
    round_robin: bool
    hedge_after_seconds: float | None

    def __post_init__(self) -> None:
        try:
            check_address(self.address)
        except ValueError as error:
            raise ValueError(f"address: {error}") from None
        self.timeout_of(None)
        hedge = self.hedge_after_seconds
        if hedge is not None and not 0 <= hedge < math.inf:
            raise ValueError(f"hedge_after_seconds: expected 0 or more, or None, got {hedge}")

    def channel_options(self) -> list[tuple[str, int | str]]:
        """Those of a channel to the server."""
        return make_channel_options(retries=self.retries, round_robin=self.round_robin)

    def timeout_of(self, asked: float | None) -> float:
        """The seconds that a call may take, where it asks for none the client's.

        gRPC does not take infinity, which becomes a very long time.

        Raises:
            ValueError: what was asked for is less than no time, or no number.
        """
        seconds = self.timeout_seconds if asked is None else asked
        if not seconds >= 0:  # nor is NaN
            raise ValueError(f"timeout_seconds: expected 0 or more, got {seconds}")
        return min(seconds, _LONGEST_TIMEOUT)

    def patience(self, seconds: float) -> Patience:
        """How long, and how often, to ask again in a call that may take so many seconds."""
        return Patience(seconds, MOST_ATTEMPTS if self.retries else 1)

    def to_call_error(self, error: grpc.RpcError, seconds: float, no_connection: str) -> CallError:
        """Say in a line what failed of a call that could take so many seconds.

        `no_connection` is why there is no connection, if there is none, of a call that `is_late`.
        """
        tls = self.security.tls_ca is not None
        return to_call_error(error, self.address, seconds, tls=tls, no_connection=no_connection)
