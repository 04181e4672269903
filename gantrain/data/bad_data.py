"""Names what is wrong with data, in words for the person who has to mend it."""

from dataclasses import dataclass


class DatasetError(ValueError):
    """A source cannot be used: one line that names the thing and says what to do."""


def unreadable(source: object, error: OSError) -> DatasetError:
    """What to raise where the system refuses to read a file or folder that is there."""
    return DatasetError(
        f"{source}: cannot be read: {error.strerror}; make it readable, or use a readable copy"
    )


class BadFileError(ValueError):
    """One file cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class BadFile:
    """A file of the source that cannot be used."""

    name: str  # relative to the source, with forward slashes
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def printable(name: str) -> str:
    """Return the name on one line: control characters and broken encodings are escaped."""
    return name if name.isprintable() else ascii(name)[1:-1]


def list_some(items: list[str], shown: int) -> str:
    """Join the first `shown` items and count the rest."""
    rest = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {rest} more" if rest > 0 else "")
