"""Certificates and tokens come from files, which are read anew when they change.

What a file says is used only once it was found right. A changed file that is wrong is reported and
changes nothing: a server goes on with the certificate and the tokens that it has.
"""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from ganserve.errors import StartupError
from ganserve.metrics import Metrics
from ganserve.security.certificates import read_certificate

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_SHORTEST_TOKEN = 16
# gRPC's core frees what it makes handshakes of as soon as it is given new certificates, also where
# another connection is about to use it, and the process ends (1.85; its issue 36693). It asks for
# certificates under a lock, and a handshake that has left the lock needs microseconds.
_HANDSHAKES_BEGUN_SECONDS = 0.05

_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,}=*")  # a bearer token, as RFC 6750 spells it


class ReloadedFiles(Generic[Value]):
    """The value that some files have together, read anew by each `refresh`.

    Attributes:
        value: what the files last said that was right.
    """

    def __init__(
        self,
        kind: str,
        files: dict[str, Path],
        parse: Callable[..., Value],
        on_reload: Callable[[str], None],
    ) -> None:
        """Read the files for the first time.

        Args:
            kind: what the files hold, in the plural, for messages.
            files: each file's path under the setting that names it.
            parse: takes the files' contents in that order; raises ValueError for wrong ones.
            on_reload: called with `success` when a change is taken over, and with `failure` once
                where it is wrong.

        Raises:
            StartupError: a file cannot be read, or what it says is wrong.
        """
        self._kind = kind
        self._files = files
        self._parse = parse
        self._on_reload = on_reload
        self._seen = self._read()
        self._is_wrong = False  # what was seen last
        self.value = self._parse_all(self._seen)

    def refresh(self) -> None:
        """Take over what has changed; blocks while it reads. Never raises, whatever files hold.

        What is wrong is tried at each look: a certificate may become valid as it is.
        """
        seen = self._read()
        is_changed = seen != self._seen
        if not is_changed and not self._is_wrong:
            return
        error = self._take_over(seen)
        if error is not None and (newest := self._read()) != seen:
            # Replaced while they were read, as by a link that is swapped: some were the old ones.
            is_changed = True
            error = self._take_over(newest)
        if error is None:
            logger.info("the %s were read anew", self._kind)
            self._on_reload("success")
        elif is_changed:  # one line a change, not one a look
            self._report(error)

    def _take_over(self, contents: list[bytes | str]) -> Exception | None:
        """Use what files say; where that is wrong, return why."""
        self._seen = contents
        try:
            self.value = self._parse_all(contents)
        except Exception as error:
            self._is_wrong = True
            return error
        self._is_wrong = False
        return None

    def _report(self, error: Exception) -> None:
        if isinstance(error, StartupError):
            logger.error("the %s before stay in use: %s", self._kind, error)
        else:  # unforeseen, but no reason to end a server that has what it needs
            message = "the %s before stay in use: reading the new ones failed"
            logger.error(message, self._kind, exc_info=error)
        self._on_reload("failure")

    def _read(self) -> list[bytes | str]:
        """Read each file's content, or why it cannot be had."""
        contents: list[bytes | str] = []
        for setting, path in self._files.items():
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                contents.append(f"{setting}: {path}: {error.strerror}")
        return contents

    def _parse_all(self, contents: Sequence[bytes | str]) -> Value:
        for content in contents:
            if isinstance(content, str):
                raise StartupError(content)
        try:
            return self._parse(*contents)
        except ValueError as error:
            raise StartupError(str(error)) from None


class ServerCertificate:
    """The server's certificate; new connections get the newest."""

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None, metrics: Metrics
    ) -> None:
        """Read the files.

        Raises:
            StartupError: they cannot be read or do not fit together.
        """
        self._metrics = metrics
        files = {"tls_certificate": certificate, "tls_key": key}
        if client_ca is not None:
            files["tls_client_ca"] = client_ca
        self._needs_client = client_ca is not None
        self._files = ReloadedFiles(
            "certificates",
            files,
            partial(read_certificate, (certificate, key)),
            _show_reloads("certificate", metrics),
        )
        self._show_expiry()

    def refresh(self) -> None:
        """Take over what has changed."""
        self._files.refresh()
        self._show_expiry()

    def make_credentials(self) -> grpc.ServerCredentials:
        """Build what one port needs; it asks at each handshake whether the certificate changed."""
        in_use = self._files.value.configuration

        def fetch_changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal in_use
            newest = self._files.value.configuration
            if newest is in_use:
                return None
            time.sleep(_HANDSHAKES_BEGUN_SECONDS)
            in_use = newest
            return newest

        return grpc.dynamic_ssl_server_credentials(
            in_use,
            fetch_changed,  # type: ignore[arg-type]  # None is documented, and missing in the types
            require_client_authentication=self._needs_client,
        )

    def _show_expiry(self) -> None:
        for name, seconds in self._files.value.expiries.items():
            self._metrics.certificate_expiry.labels(name).set(seconds)


class Tokens:
    """The tokens that may call, kept as hashes only."""

    def __init__(self, file: Path, metrics: Metrics) -> None:
        """Read the file.

        Raises:
            StartupError: it cannot be read, or a line of it is no token.
        """
        self._files = ReloadedFiles(
            "tokens",
            {"token_file": file},
            parse_tokens,
            _show_reloads("tokens", metrics),
        )

    def refresh(self) -> None:
        """Take over what has changed."""
        self._files.refresh()

    def identify(self, authorization: str | bytes | None) -> bytes | None:
        """Find the token of an `authorization` header; return what stands for it, or None.

        Takes equally long for all tokens, so that nothing can be learnt from the time.
        """
        if authorization is None:
            return None
        if isinstance(authorization, str):
            authorization = authorization.encode()
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        digest = hashlib.sha256(token.strip()).digest()
        found = None
        for known in self._files.value:
            if hmac.compare_digest(known, digest):
                found = known
        return found


def _show_reloads(credential: str, metrics: Metrics) -> Callable[[str], None]:
    """Count what becomes of changed files, from 0 on so that the first one is an increase."""
    counts = {o: metrics.credential_reloads.labels(credential, o) for o in ("success", "failure")}
    refused = metrics.credential_files_refused.labels(credential)

    def show(outcome: str) -> None:
        counts[outcome].inc()
        refused.set(outcome == "failure")

    return show


def parse_tokens(content: bytes) -> tuple[bytes, ...]:
    """Hash the tokens of a file: one a line; empty lines and those that begin with # mean nothing.

    Raises:
        ValueError: there is none, or a line is no token; its number is named, never the line.
    """
    digests = []
    for number, line in enumerate(content.splitlines(), start=1):
        token = line.strip()
        if not token or token.startswith(b"#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise ValueError(
                f"token_file: line {number}: expected a token of at least {_SHORTEST_TOKEN} "
                "letters, digits and -._~+/, got something else"
            )
        digests.append(hashlib.sha256(token).digest())
    if not digests:
        raise ValueError("token_file: expected at least one token, got none")
    return tuple(digests)
