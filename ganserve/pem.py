"""PEM files: what gRPC is given of them, so that it takes the same ones as OpenSSL.

OpenSSL reads past a byte order mark and zero bytes, gRPC does not: it gets the blocks alone.
"""

import re

# A block without an end goes on to that of the file, to be found wrong and not left out.
_BLOCK = rb"(?ms)^(?:\xef\xbb\xbf)?(-----BEGIN (%b)-----.*?(?:^-----END \2-----|\Z))"
CERTIFICATES = re.compile(_BLOCK % rb"(?:X509 |TRUSTED )?CERTIFICATE")
KEYS = re.compile(_BLOCK % rb"(?:[A-Z]+ )?PRIVATE KEY")


def take_blocks(setting: str, kind: re.Pattern[bytes], content: bytes) -> bytes:
    """Take the blocks of one kind out of a file, without what people write around them.

    Raises:
        ValueError: there are none; the message names the setting.
    """
    found = kind.findall(content)
    if not found:
        raise ValueError(f"{setting}: expected blocks of PEM, got none")
    return b"".join(block + b"\n" for block, _ in found)
