"""Scans of the repository's folder: the versions that are there and may serve.

What is wrong with the folder is logged once an outage, not once a scan.
"""

import errno
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

from ganserve.file_reads import FileReads
from ganserve.models.model_files import LAYOUT, Candidate, can_be_read, misplaced_files, scan
from ganserve.plain_text import printable

logger = logging.getLogger(__name__)


class RepositoryFolder:
    """A folder `NAME/VERSION/model.onnx` that is scanned again and again.

    Args:
        root: the folder.
        wanted: names and numbers of the only versions that may serve; None for all.
        default_model: the model that is meant where a call names none, if there is one.

    Attributes:
        missing: names and numbers that are wanted, but were not there at the last scan.
    """

    def __init__(
        self,
        root: Path,
        wanted: frozenset[tuple[str, int]] | None,
        default_model: str | None = None,
    ) -> None:
        self._root = root
        self._reads = FileReads(f"the models in {root}")
        self._wanted = wanted
        self._default_model = default_model
        self._is_default_missing = False
        self._is_empty = False
        self._device: int | None = None  # the file system on which something was found
        self._problems: set[str] = set()
        self.missing: set[tuple[str, int]] = set()

    async def scan(self) -> tuple[dict[str, list[Candidate]], Collection[str]] | None:
        """Find what may serve, newest first, by model.

        Returns:
            The versions, and the models of which nothing is known because their folders could not
            be read. None if that is true of all.
        """
        try:
            found, unreadable = await self._reads.run(self._look)
        except OSError as error:
            self._report([error])
            return None
        self._report(unreadable.values())
        if self._wanted is not None:
            found = self._choose(self._wanted, found, unreadable)
        self._check_default({*found}, unreadable)
        return found, unreadable

    async def is_gone(self, candidate: Candidate) -> bool:
        """Whether a version's file is not there any more, as far as that can be found out."""
        try:
            await self._reads.run(candidate.path.stat)  # `exists` takes other errors for absence
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    async def can_be_read(self, candidate: Candidate) -> bool:
        """Whether a version's file can be opened now, as far as that can be found out."""
        try:
            return await self._reads.run(can_be_read, candidate.path)
        except OSError:
            return False

    def _look(self) -> tuple[dict[str, list[Candidate]], dict[str, OSError]]:
        """Scan the folder.

        Raises:
            OSError: it cannot be read, or is but the place where the one that could was mounted.
        """
        before = self._root.stat()
        found, unreadable = scan(self._root)
        after = self._root.stat()
        if (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
            problem = "replaced, mounted or unmounted while it was looked through"
            raise OSError(errno.ESTALE, problem, str(self._root))
        device = before.st_dev
        if found or unreadable:
            self._device = device
        elif self._device not in (None, device):
            problem = "empty and on another file system than before; is it still mounted?"
            raise OSError(errno.ENODEV, problem, str(self._root))
        self._tell_misplaced(is_empty=not found and not unreadable)
        return found, unreadable

    def _tell_misplaced(self, *, is_empty: bool) -> None:
        """Where there is no version, say once which files may have been meant as such."""
        if is_empty and not self._is_empty and (files := misplaced_files(self._root)):
            logger.warning(
                "passed over, for models lie at %s: %s", LAYOUT, ", ".join(map(printable, files))
            )
        self._is_empty = is_empty

    def _choose(
        self,
        wanted: frozenset[tuple[str, int]],
        found: dict[str, list[Candidate]],
        unreadable: Collection[str],
    ) -> dict[str, list[Candidate]]:
        """Leave only what is wanted; say what of it is not there."""
        there_are = {(name, c.version) for name, candidates in found.items() for c in candidates}
        missing = {(name, number) for name, number in wanted - there_are if name not in unreadable}
        for name, number in sorted(missing - self.missing):
            logger.warning("model %s version %d is to serve, but is not there", name, number)
        self.missing = missing
        chosen = {
            name: [c for c in candidates if (name, c.version) in wanted]
            for name, candidates in found.items()
        }
        return {name: candidates for name, candidates in chosen.items() if candidates}

    def _check_default(self, names: set[str], unreadable: Collection[str]) -> None:
        """Say once that the default model is missing: its name may be misspelt."""
        name = self._default_model
        is_missing = name is not None and name not in names and name not in unreadable
        if is_missing and not self._is_default_missing:
            logger.warning(
                "default_model %s is not there: calls that name no model fail; there are %s",
                *(name, ", ".join(sorted(names)) or "none yet"),
            )
        self._is_default_missing = is_missing

    def _report(self, errors: Iterable[OSError]) -> None:
        problems = {f"{error.filename}: {error.strerror}" for error in errors}
        for problem in sorted(problems - self._problems):
            logger.error("cannot be read, what serves goes on: %s", problem)
        self._problems = problems
