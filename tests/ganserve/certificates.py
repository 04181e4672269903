"""Issues certificates for tests: an authority, and what it signs."""

import datetime as dt
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import NameOID

# What files of certificates may begin with, besides certificates.
AROUND = [
    pytest.param("# für Köln\n".encode(), id="UTF-8"),
    pytest.param("# für Köln\n".encode("latin-1"), id="Latin-1"),
    pytest.param(b"# \0\n", id="a zero byte"),
    pytest.param(b"\xef\xbb\xbf", id="a byte order mark"),
]


class Authority:
    """Signs certificates; its own is the file `ca` in its folder."""

    def __init__(self, folder: Path, name: str = "authority", *, days: float = 3650) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = _name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=None)
        certificate = self._sign(self._name, self._key.public_key(), days, basic)
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(certificate)

    def issue(
        self,
        name: str = "server",
        *,
        days: float = 30,
        not_before: dt.datetime | None = None,  # valid from then on
        password: bytes | None = None,
        key: CertificateIssuerPrivateKeyTypes | None = None,
    ) -> tuple[Path, Path]:
        """Write a certificate for 127.0.0.1 and localhost, and its key, over what was there."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        hosts = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        certificate_file = self._folder / f"{name}.crt"
        key_file = self._folder / f"{name}.key"
        certificate_file.write_bytes(
            self._sign(_name(name), key.public_key(), days, hosts, not_before)
        )
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
        )
        return certificate_file, key_file

    def _sign(
        self,
        subject: x509.Name,
        key: CertificatePublicKeyTypes,
        days: float,
        extension: x509.ExtensionType,
        not_before: dt.datetime | None = None,
    ) -> bytes:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now - dt.timedelta(days=100))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
