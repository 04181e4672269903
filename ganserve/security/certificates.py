"""Certificates that gRPC's clients can use: their PEM, a trial handshake, kinds of keys."""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from ganserve.pem import CERTIFICATES, KEYS, take_blocks

# Identifiers of public keys as they are encoded, from RFC 8017, 5480 and 8410.
_ELLIPTIC = bytes.fromhex("06072a8648ce3d0201")  # its curve comes after it
_KEY_KINDS = {
    bytes.fromhex("06092a864886f70d010101"): "RSA",
    bytes.fromhex("06092a864886f70d01010a"): "RSA for PSS only",
    bytes.fromhex("06082a8648ce3d030107"): "P-256",
    bytes.fromhex("06052b81040022"): "P-384",
    bytes.fromhex("06052b81040023"): "P-521",
    bytes.fromhex("06032b6570"): "Ed25519",
    bytes.fromhex("06032b6571"): "Ed448",
}
_USABLE_KEYS = ("RSA", "P-256", "P-384")  # what gRPC's clients offer to verify, unasked


@dataclass(frozen=True)
class Certificate:
    """A certificate that a client can shake hands with."""

    configuration: grpc.ServerCertificateConfiguration
    expiries: dict[str, float]  # by what expires, in seconds since 1970


def read_certificate(
    paths: tuple[Path, Path], certificate: bytes, key: bytes, client_ca: bytes | None = None
) -> Certificate:
    """Try a certificate, with its key, before clients meet it.

    Args:
        paths: the files of both.
        certificate: what the first file was seen to hold.
        key: what the second file was seen to hold.
        client_ca: authorities of the clients, if they must show certificates.

    Raises:
        ValueError: no gRPC client could connect; the message names the setting and says why.
    """
    server = _load_pair(paths, [certificate, key])
    chain = _take_certificates("tls_certificate", certificate)
    expiries = {"server": _shake_hands(server, chain)}
    authorities = None
    if client_ca is not None:
        authorities = _take_certificates("tls_client_ca", client_ca)
        expiries |= _authority_expiry(authorities)
    pair = take_blocks("tls_key", KEYS, key), chain
    return Certificate(grpc.ssl_server_certificate_configuration([pair], authorities), expiries)


def _load_pair(paths: tuple[Path, Path], seen: Sequence[bytes]) -> ssl.SSLContext:
    """Make a server of the files; they must hold what was seen of them."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Files by their paths are all that it takes; a password keeps it from asking for one.
        server.load_cert_chain(*paths, password="")
        held = [path.read_bytes() for path in paths]
    except OSError as error:  # an SSLError is one too
        raise ValueError(
            "tls_certificate, tls_key: expected PEM files of a certificate and its key, "
            f"without a password, got {_reason(error)}"
        ) from None
    if held != seen:
        raise ValueError("tls_certificate, tls_key: they changed while they were read")
    return server


def _take_certificates(setting: str, content: bytes) -> bytes:
    blocks = take_blocks(setting, CERTIFICATES, content)
    if b"-----BEGIN TRUSTED" in blocks:  # a form of OpenSSL's own
        raise ValueError(
            f"{setting}: expected BEGIN CERTIFICATE, got BEGIN TRUSTED CERTIFICATE: "
            "`openssl x509 -in OLD -out NEW` turns one into the other"
        )
    return blocks


def _load_authorities(context: ssl.SSLContext, blocks: bytes) -> None:
    # What is not ASCII must not be left out, and is no base64 spelt out either: it is refused.
    context.load_verify_locations(cadata=blocks.decode("ascii", errors="backslashreplace"))


def _authority_expiry(blocks: bytes) -> dict[str, float]:
    """Find when the first of the authorities expires; what is no authority shows no time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        _load_authorities(context, blocks)
        ends = [_end(authority) for authority in context.get_ca_certs()]
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"tls_client_ca: expected certificates as PEM, got {_reason(error)}"
        ) from None
    return {"client_ca": min(ends)} if ends else {}


def _shake_hands(server: ssl.SSLContext, chain: bytes) -> float:
    """Let a client that trusts the certificate try it, within memory; return its expiry."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The first certificate is trusted itself, for whoever issued it need not be in the file.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        _load_authorities(client, chain)
        ends = [
            client.wrap_bio(to_client, to_server),
            server.wrap_bio(to_server, to_client, server_side=True),
        ]
        for end in ends * 2:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:  # the other end's turn
                continue
        shown, encoded = ends[0].getpeercert(), ends[0].getpeercert(binary_form=True)
        assert shown is not None
        assert encoded is not None
        expiry = _end(shown)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"tls_certificate: expected one that clients can use now, got {_reason(error)}"
        ) from None
    _check_key(encoded)
    return expiry


def _check_key(certificate: bytes) -> None:
    """Refuse a key that gRPC's clients cannot verify.

    The handshake does not tell: both of its ends are OpenSSL, which takes more kinds than the
    BoringSSL of gRPC, and Python's `ssl` cannot have them take fewer.
    """
    kind = _key_kind(certificate)
    if kind not in _USABLE_KEYS:
        raise ValueError(
            f"tls_certificate, tls_key: expected a key of the kind {', '.join(_USABLE_KEYS[:-1])} "
            f"or {_USABLE_KEYS[-1]}, got {kind}, with which no gRPC client can connect"
        )


def _key_kind(certificate: bytes) -> str:
    """Name the kind of the public key in a certificate as DER (RFC 5280, 4.1)."""
    try:
        signed = _parts(_parts(certificate)[0])
        has_version = signed[0][0] == 0xA0
        public_key = signed[6 if has_version else 5]
        algorithm, *parameters = _parts(_parts(public_key)[0])
    except (IndexError, ValueError):  # OpenSSL is less strict about the encoding
        return "one that is not DER"
    identifier = parameters[0] if algorithm == _ELLIPTIC and parameters else algorithm
    return _KEY_KINDS.get(identifier, "another")


def _parts(element: bytes) -> list[bytes]:
    """Split an element of DER into the elements within it."""
    header, _ = _sizes(element)
    rest, parts = element[header:], []
    while rest:
        end = sum(_sizes(rest))
        parts.append(rest[:end])
        rest = rest[end:]
    return parts


def _sizes(element: bytes) -> tuple[int, int]:
    """Find the bytes of an element's header, and of what it holds (X.690, 8.1)."""
    size = element[1]
    if size < 0x80:
        return 2, size
    header = 2 + size - 0x80
    return header, int.from_bytes(element[2:header], "big")


def _end(certificate: Mapping[str, object]) -> float:
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
