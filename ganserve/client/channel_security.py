"""TLS and tokens: how a client shows who it is and learns whom it talks to."""

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class ChannelSecurity:
    """What a client needs where a server asks for TLS, a certificate of the client, or a token.

    Attributes:
        tls_ca: PEM file of the authorities that may vouch for the server. With it there is TLS.
        tls_certificate: PEM file of the client's certificate, for servers that ask for one.
        tls_key: PEM file of its private key.
        token_file: File with a bearer token, such as one line of the server's. Without TLS it can
            be read by whoever sees the network's traffic.
    """

    tls_ca: str | Path | None = None
    tls_certificate: str | Path | None = None
    tls_key: str | Path | None = None
    token_file: str | Path | None = None

    def __post_init__(self) -> None:
        """Check that what belongs together is there.

        Raises:
            ValueError: it is not.
        """
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate, tls_key: expected both or none, got one")
        if self.tls_certificate is not None and self.tls_ca is None:
            raise ValueError("tls_certificate: expected tls_ca too, got none")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files for TLS; None without TLS.

        Raises:
            OSError: one cannot be read.
        """
        if self.tls_ca is None:
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=Path(self.tls_ca).read_bytes(),
            private_key=_read(self.tls_key),
            certificate_chain=_read(self.tls_certificate),
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Read the token; what comes back goes with each call.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds not one token.
        """
        if self.token_file is None:
            return ()
        words = Path(self.token_file).read_text(encoding="utf-8").split()
        if len(words) != 1 or not words[0].isascii() or not words[0].isprintable():
            raise ValueError(f"token_file: expected one token in {self.token_file}, got other text")
        return (("authorization", f"Bearer {words[0]}"),)


def open_channel(
    address: str, security: ChannelSecurity, options: list[tuple[str, int | str]]
) -> grpc.Channel:
    """Open a channel for blocking calls."""
    credentials = security.credentials()
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def open_async_channel(
    address: str, security: ChannelSecurity, options: list[tuple[str, int | str]]
) -> grpc.aio.Channel:
    """Open a channel for calls in an event loop."""
    credentials = security.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
