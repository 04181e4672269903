"""TLS and tokens: how a client shows who it is and learns whom it talks to."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from ganserve.pem import CERTIFICATES, KEYS, take_blocks


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

        gRPC looks into them only when it connects: it would then say of the server that it does not
        serve, and for authorities it would take an empty file to mean all those that are public.

        Raises:
            OSError: one cannot be read.
            ValueError: one does not hold what it must, or certificate and key do not fit together.
        """
        if self.tls_ca is None:
            return None
        # Each is read before OpenSSL does so, whose errors do not name files that cannot be had.
        paths = (self.tls_ca, self.tls_key, self.tls_certificate)
        ca, key, certificate = (b"" if path is None else Path(path).read_bytes() for path in paths)
        _check_authorities(self.tls_ca)
        authorities = take_blocks("tls_ca", CERTIFICATES, ca)
        if self.tls_certificate is None or self.tls_key is None:
            return grpc.ssl_channel_credentials(authorities)
        _check_pair(self.tls_certificate, self.tls_key)
        key = take_blocks("tls_key", KEYS, key)
        certificate = take_blocks("tls_certificate", CERTIFICATES, certificate)
        return grpc.ssl_channel_credentials(authorities, key, certificate)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Read the token; what comes back goes with each call.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds not one token.
        """
        if self.token_file is None:
            return ()
        words = Path(self.token_file).read_text(encoding="latin-1").split()  # of any bytes
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


def _check_authorities(path: str | Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ValueError(
            f"tls_ca: expected certificates as PEM in {path}, got {_reason(error)}"
        ) from None


def _check_pair(certificate: str | Path, key: str | Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")  # which keys are long enough is for the server to say
    try:
        context.load_cert_chain(certificate, key, password="")  # or it would ask for one
    except ssl.SSLError as error:
        raise ValueError(
            f"tls_certificate: expected one as PEM in {certificate} and its key, without a "
            f"password, in {key}, got {_reason(error)}"
        ) from None


def _reason(error: ssl.SSLError) -> str:
    return error.reason or "something else"  # where OpenSSL cannot say what is wrong with PEM
