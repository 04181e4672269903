"""Names what is wrong with data, in words for the person who has to mend it."""

from dataclasses import dataclass


class DatasetError(ValueError):
    """A source cannot be used: one line that names the thing and says what to do."""


def unreadable(source: object, error: OSError) -> DatasetError:
    """What to raise where the system refuses to read a file or folder that is there."""
    refused = UnreadableFileError(error)
    return DatasetError(f"{source}: {refused}; {refused.remedy}")


class BadFileError(ValueError):
    """One file cannot be used; the message is the reason, without the file's name."""

    remedy = "fetch it again"  # of a file that is part of published data


class UnreadableFileError(BadFileError):
    """The system refuses to read one file that is there."""

    remedy = "make it readable, or use a readable copy"

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot be read: {error.strerror}")


@dataclass(frozen=True)
class BadFile:
    """A file of the source that cannot be used."""

    name: str  # relative to the source, with forward slashes
    reason: str
    remedy: str = BadFileError.remedy

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def printable(name: str) -> str:
    """Return the name on one line: control characters and broken encodings are escaped."""
    return name if name.isprintable() else ascii(name)[1:-1]


def list_some(items: list[str], shown: int) -> str:
    """Join the first `shown` items and count the rest."""
    rest = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {rest} more" if rest > 0 else "")
