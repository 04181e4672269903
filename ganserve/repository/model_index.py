"""The index of a repository: its versions, which of them serve, and which one a call means."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping

from ganserve.errors import InvalidRequest, Loading, UnknownModel
from ganserve.repository.versions import ModelState, Served, Version

_FIRST_SCAN_SECONDS = 2.0  # a CPU needs less; who must wait longer had better try elsewhere


class ModelIndex:
    """The models of a repository, which alone changes the index; calls find their versions in it.

    Used in the event loop. Other threads may read its attributes, `serving_names` and `is_serving`.

    Attributes:
        names: the models on disk, sorted.
        settled: whether all models of a scan were once loaded, or found to be faulty.
        first_scan_over: set when that is so, or the first scan failed.
    """

    def __init__(self, default_model: str | None) -> None:
        """`default_model` is meant where a call names none; None for the only one there is."""
        self.names: list[str] = []
        self.settled = False
        self.first_scan_over = asyncio.Event()
        self._default_model = default_model
        # By name and number, each in the order in which they came: a number's file may be replaced.
        self._versions: dict[str, dict[int, list[Version]]] = {}
        # By name and number, newest first; of models of which a version serves.
        self._serving: dict[str, Mapping[int, Version]] = {}

    @property
    def versions(self) -> list[Version]:
        """All versions that have a state, by name, newest first."""
        return [version for name in sorted(self._versions) for version in self.versions_of(name)]

    def versions_of(self, name: str, number: int | None = None) -> list[Version]:
        """The versions of a model that have a state, newest first; with a number its alone."""
        versions = self._versions.get(name, {})
        numbers = sorted(versions, reverse=True) if number is None else [number]
        return [version for number in numbers for version in versions.get(number, ())]

    @property
    def serving_names(self) -> list[str]:
        """The models of which some version serves."""
        return list(self._serving)

    def is_serving(self, name: str) -> bool:
        """Whether some version of the model can be asked for."""
        return name in self._serving

    def serving(self, name: str) -> Mapping[int, Version]:
        """The versions of a model that serve, by number, newest first."""
        return self._serving.get(name, {})

    async def wait_for_first_scan(self, name: str, number: int | None) -> None:
        """Let a call that came early wait for the first models, for at most two seconds.

        The ports are open while they load, and not every client asks for the health beforehand.
        """
        over = self.first_scan_over
        if over.is_set():
            return
        if self._serving_version(name or self._default_model or "", number) is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_SCAN_SECONDS):
                    await over.wait()

    @contextlib.contextmanager
    def use(
        self, name: str, number: int | None, *, field: str = "model_name"
    ) -> Iterator[tuple[Version, Served]]:
        """Keep a version from being dropped while a call uses it; `field` is where its name came.

        Raises:
            InvalidRequest: no name is given and there is no default.
            UnknownModel: there is no such model or version, or other versions of it serve.
            Loading: it does not serve yet, or may not.
        """
        version = self._find_serving(name, number, field)
        assert version.served is not None
        version.calls += 1
        try:
            yield version, version.served
        finally:
            version.calls -= 1
            if version.calls == 0 and version.state is ModelState.RETIRING:
                version.idle.set()

    def describe(self, name: str, number: int | None) -> Version:
        """Find a version in any state; without a number the one that serves, or else the newest.

        Of several files that had its number it is the one that serves, or else the one on disk.

        Raises:
            InvalidRequest: as `use`.
            UnknownModel: there is no such model or version.
            Loading: it is not known yet what versions there are.
        """
        name = self._resolve_name("name", name)
        if version := self._serving_version(name, number):
            return version
        known = self.versions_of(name, number)
        if not known:
            raise self._unknown_version(name, number)
        return min(known, key=lambda version: version.state is ModelState.RETIRING)

    # For the repository.

    def add(self, version: Version) -> None:
        """Take in a version that is about to be loaded."""
        versions = self._versions.setdefault(version.name, {})
        versions.setdefault(version.number, []).append(version)

    def remove(self, version: Version) -> None:
        """Leave out a version that was retired, or could not be loaded."""
        versions = self._versions[version.name]
        versions[version.number].remove(version)
        if not versions[version.number]:
            del versions[version.number]
        if not versions:
            del self._versions[version.name]

    def serve(self, name: str, versions: Mapping[int, Version]) -> None:
        """Have these versions of a model serve from now on, and no others of it."""
        if versions:
            self._serving[name] = dict(sorted(versions.items(), reverse=True))
        else:
            self._serving.pop(name, None)

    def _resolve_name(self, field: str, name: str) -> str:
        name = name or self._default_model or ""
        if name in self.names:
            return name
        if not self.names or not self.settled:
            raise Loading("there is no model" if self.settled else "no model has been loaded yet")
        there_are = ", ".join(self.names)
        if name:
            raise UnknownModel(f"model {name[:80]!r}: expected one of {there_are}")
        if len(self.names) > 1:
            raise InvalidRequest(field, f"expected one of {there_are}, got none")
        return self.names[0]

    def _find_serving(self, name: str, number: int | None, field: str) -> Version:
        name = self._resolve_name(field, name)
        if version := self._serving_version(name, number):
            return version
        if name not in self._serving:
            asked = self.versions_of(name, number)
            if failed := next((version for version in asked if version.error), None):
                raise Loading(f"model {name!r} version {failed.number}: {failed.error}")
        raise self._unknown_version(name, number)

    def _serving_version(self, name: str, number: int | None) -> Version | None:
        serving = self._serving.get(name, {})
        if number is None:
            return next(iter(serving.values()), None)
        return serving.get(number)

    def _unknown_version(self, name: str, number: int | None) -> UnknownModel | Loading:
        """What to answer where a version does not serve or, if none serves, has no state."""
        known = [v for v in self.versions_of(name) if v.state is not ModelState.RETIRING]
        loading = [v.number for v in known if v.state is ModelState.LOADING]
        numbers = [*self.serving(name)] or [v.number for v in known if not loading]
        if number is None or not numbers or not self.settled or number in loading:
            return Loading(f"model {name!r}: is being loaded")
        one_of = "one of " if len(numbers) > 1 else ""
        there_are = ", ".join(map(str, numbers))
        return UnknownModel(f"model {name!r} version {number}: expected {one_of}{there_are}")
