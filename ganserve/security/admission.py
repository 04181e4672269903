"""Who may call and how much: tokens, and each client's share of the images."""

import contextlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ganserve.calls import split_peer
from ganserve.errors import Overloaded, RateLimited
from ganserve.security.credentials import Tokens
from ganserve.transport.call_context import CallMetadata, Context

# A client whose share is whole needs no entry; at this number the one silent for longest goes too.
_MOST_CLIENTS = 10_000
# Those that are told to come back may never do so, and others should not wait long for them.
_LONGEST_QUEUE_SECONDS = 5.0


@dataclass
class _Share:
    images: float  # left; below 0 for a request larger than the burst
    at: float  # on the limiter's clock
    promised: float = 0.0  # on that clock: when the last of the refused calls was told to come back


class RateLimiter:
    """Gives each client so many images a second, and a burst of them at once: a token bucket."""

    def __init__(
        self,
        images_per_second: float,
        burst_images: int,
        *,
        most_clients: int = _MOST_CLIENTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = images_per_second
        self._burst = burst_images
        self._most_clients = most_clients
        self._clock = clock
        self._shares: OrderedDict[str, _Share] = OrderedDict()  # the silent for longest first

    def take(self, client: str, images: int) -> None:
        """Count images against a client's share.

        A request larger than the burst is admitted when the share is whole, and leaves a debt.

        Raises:
            RateLimited: the share does not reach; says when it will.
        """
        now = self._clock()
        share = self._shares.pop(client, None) or _Share(self._burst, now)
        share.images = min(self._burst, share.images + (now - share.at) * self._rate)
        share.at = now
        self._shares[client] = share
        if len(self._shares) > self._most_clients:
            self._shares.popitem(last=False)
        wanted = min(images, self._burst)
        if wanted > share.images:
            raise RateLimited(
                f"the rate limit is {self._rate:g} images a second for each client",
                retry_seconds=self._promise(share, wanted),
            )
        share.images -= images

    def _promise(self, share: _Share, images: float) -> float:
        """In how many seconds a refused call should come back: one after the other.

        If all that a client makes at the same time came back together, one of them would succeed
        and the others use up their attempts.
        """
        seconds = (images - share.images) / self._rate
        waiting = share.promised - share.at
        if waiting > 0:
            seconds = max(seconds, min(waiting + images / self._rate, _LONGEST_QUEUE_SECONDS))
        share.promised = share.at + seconds
        return seconds

    @contextlib.contextmanager
    def taking(self, client: str, images: int) -> Iterator[None]:
        """Count images against a client's share, unless the queue turns out to be full.

        They count also where the caller leaves, or its deadline passes, before the model sees them:
        they took room in the queue, and to keep it full would otherwise cost a client nothing.

        Raises:
            RateLimited: the share does not reach; says when it will.
        """
        self.take(client, images)
        try:
            yield
        except Overloaded:
            self._give_back(client, images)
            raise

    def _give_back(self, client: str, images: int) -> None:
        share = self._shares.get(client)
        if share is not None:  # else it was forgotten, and is whole
            share.images += images


class Admission:
    """Tells clients apart, and turns away those without a token or beyond their share."""

    def __init__(self, tokens: Tokens | None, rate_limiter: RateLimiter | None) -> None:
        self._tokens = tokens
        self._rate_limiter = rate_limiter

    def has_token(self, metadata: CallMetadata) -> bool:
        """Whether a call may be made at all: all may where no tokens are asked for."""
        return self._tokens is None or self._identify(self._tokens, metadata) is not None

    def taking_images(self, context: Context, images: int) -> AbstractContextManager[None]:
        """Count images against the share of whoever calls, unless the queue turns out to be full.

        Raises:
            RateLimited: on entering; the share does not reach.
        """
        if self._rate_limiter is None:
            return contextlib.nullcontext()
        return self._rate_limiter.taking(self._client(context), images)

    def _client(self, context: Context) -> str:
        """The token that was presented, or else the address."""
        if self._tokens is not None:
            token = self._identify(self._tokens, context.invocation_metadata())
            if token is not None:  # else it was taken off the list within this call
                return token.hex()
        return client_address(context.peer())

    def _identify(self, tokens: Tokens, metadata: CallMetadata) -> bytes | None:
        for name, value in metadata or ():
            if name == "authorization":
                return tokens.identify(value)
        return None


def client_address(peer: str) -> str:
    """What stays the same of a peer, as gRPC names it, over all connections of a client.

    Of an IPv6 address that is the network of 64 bits, for a client may use all of its addresses.
    """
    host, _ = split_peer(peer)
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
