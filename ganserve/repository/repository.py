"""Hides the life of models: which versions there are, which serves, how one follows another."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ganserve.batching.batcher import Batcher
from ganserve.cpus import let_others_first
from ganserve.errors import (
    InvalidRequest,
    Loading,
    ModelError,
    ProviderUnavailable,
    StartupError,
    UnknownModel,
    UnreadableModel,
)
from ganserve.memory import return_free_memory
from ganserve.metrics import Metrics
from ganserve.models.model import Model
from ganserve.models.model_files import Candidate, can_be_read
from ganserve.repository.model_series import ModelSeries
from ganserve.repository.model_tasks import ModelTasks
from ganserve.repository.repository_folder import RepositoryFolder
from ganserve.repository.versions import ModelState, Served, Version, newest
from ganserve.setting_values import VersionPolicy

logger = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 2.0  # a CPU needs less; who must wait longer had better try elsewhere


class Repository:
    """The models of a folder `NAME/VERSION/model.onnx`.

    Which versions serve is the policy's: of each model the newest that can be loaded (`latest`),
    all that can be loaded, or those of the names and numbers in `versions` (`specific`). Where a
    call asks for none, the newest of those that serve is meant.

    `load` is called in a thread; `start_batcher` and `on_change`, called whenever a version
    changes its state, in the event loop.
    """

    def __init__(
        self,
        root: Path,
        load: Callable[[Path], Model],
        start_batcher: Callable[[str, Model], Batcher],
        metrics: Metrics,
        *,
        default_model: str | None = None,
        version_policy: VersionPolicy = "latest",
        versions: Sequence[tuple[str, int]] = (),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        wanted = frozenset(versions) if version_policy == "specific" else None
        self._folder = RepositoryFolder(root, wanted, default_model)
        self._load = load
        self._start_batcher = start_batcher
        self._series = ModelSeries(metrics)
        self._default_model = default_model
        self._version_policy = version_policy
        self._on_change = on_change
        self._names: list[str] = []
        self._versions: list[Version] = []
        # By name and number, newest first. Threads ask as well, so a model's dict never changes:
        # another takes its place.
        self._serving: dict[str, dict[int, Version]] = {}
        self._retirements: set[asyncio.Task[None]] = set()
        self._tasks = ModelTasks(self._refresh_model)
        # One thread for all: each would keep memory of its own that a model leaves behind.
        self._loader = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="models", initializer=let_others_first
        )
        self._loading = asyncio.Lock()  # a version that waits has no state, and may still change
        self.settled = False  # all models were looked at once
        self._first_look_over = asyncio.Event()  # or it failed

    @property
    def names(self) -> list[str]:
        """The models on disk, sorted."""
        return self._names

    @property
    def versions(self) -> list[Version]:
        """All versions that have a state, by name, newest first."""
        return sorted(self._versions, key=lambda version: (version.name, -version.number))

    @property
    def is_loading(self) -> bool:
        """Whether what a look found is still being taken up."""
        return bool(self._tasks.names)

    def is_serving(self, name: str) -> bool:
        """Whether some version of the model can be asked for."""
        return name in self._serving

    async def wait_for_first_look(self, name: str) -> None:
        """Let a call that came early wait for the first models, for at most two seconds.

        The ports are open while they load, and not every client asks for the health beforehand.
        """
        over = self._first_look_over
        if not over.is_set() and (name or self._default_model) not in self._serving:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_LOOK_SECONDS):
                    await over.wait()

    @contextlib.contextmanager
    def use(
        self, name: str, number: int | None, *, field: str = "model_name"
    ) -> Iterator[tuple[Version, Served]]:
        """Keep a version from being dropped while a call uses it; `field` is where its name came.

        Raises:
            InvalidRequest: no name is given and there is no default.
            UnknownModel: there is no such model or version, or other versions of it serve.
            Loading: no version of it serves yet.
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
        """Find a version in whatever state; the one that serves, or else the newest, if None.

        Of several files that had its number it is the one that serves, or else the one on disk.

        Raises:
            InvalidRequest: as `use`.
            UnknownModel: there is no such model or version.
            Loading: it is not known yet what versions there are.
        """
        name = self._resolve_name("name", name)
        if version := self._serving_version(name, number):
            return version
        known = [v for v in self.versions if v.name == name and number in (None, v.number)]
        if not known:
            raise self._unknown_version(name, number)
        return min(known, key=lambda version: version.state is ModelState.RETIRING)

    async def refresh(self, patience_seconds: float | None = None) -> None:
        """Look at the folder once: load what is new, retire what is gone.

        Return when that is done. Where it takes longer than `patience_seconds` it goes on, and
        another look may come meanwhile: models wait for each other only to be loaded.

        Raises:
            StartupError: the first models cannot run on the device that was asked for.
        """
        try:
            await self._look(patience_seconds)
        except BaseException:
            await self.stop_loading()
            raise
        finally:
            self._first_look_over.set()

    async def stop_loading(self) -> None:
        """Leave the models as they are."""
        await self._tasks.cancel()

    async def close(self) -> None:
        """Retire everything; return when the last call was answered."""
        await self.stop_loading()
        while self._serving:
            for version in self._serving.popitem()[1].values():
                self._retire(version)
        await asyncio.gather(*self._retirements)
        self._loader.shutdown(wait=False, cancel_futures=True)  # what loads now is of no use

    async def _look(self, patience_seconds: float | None) -> None:
        seen = await self._folder.look()
        if seen is None:
            return
        found, unreadable = seen
        self._names = sorted({*found, *(name for name in self._names if name in unreadable)})
        known = {*found, *self._serving, *(version.name for version in self._versions)}
        for name in sorted(name for name in known | self._tasks.names if name not in unreadable):
            self._tasks.begin(name, found.get(name, []))
        await self._tasks.wait(patience_seconds)
        self.settled = self.settled or not self._tasks.names
        self._on_change()

    def _resolve_name(self, field: str, name: str) -> str:
        name = name or self._default_model or ""
        if name in self._names:
            return name
        if not self._names or not self.settled:
            raise Loading("no model has been loaded yet")
        there_are = ", ".join(self._names)
        if name:
            raise UnknownModel(f"model {name[:80]!r}: expected one of {there_are}")
        if len(self._names) > 1:
            raise InvalidRequest(field, f"expected one of {there_are}, got none")
        return self._names[0]

    def _find_serving(self, name: str, number: int | None, field: str) -> Version:
        name = self._resolve_name(field, name)
        if version := self._serving_version(name, number):
            return version
        if name not in self._serving:
            asked = (v for v in self.versions if v.name == name and number in (None, v.number))
            if failed := next((version for version in asked if version.error), None):
                raise Loading(f"model {name!r} version {failed.number}: {failed.error}")
        raise self._unknown_version(name, number)

    def _serving_version(self, name: str, number: int | None) -> Version | None:
        serving = self._serving.get(name, {})
        if number is None:
            return newest(serving) if serving else None
        return serving.get(number)

    def _unknown_version(self, name: str, number: int | None) -> UnknownModel | Loading:
        """What to answer where a version does not serve or, if none serves, has no state."""
        known = [v for v in self.versions if v.name == name and v.state is not ModelState.RETIRING]
        more_may_come = not self.settled or any(v.state is ModelState.LOADING for v in known)
        numbers = [*self._serving.get(name, {})] or [v.number for v in known if not more_may_come]
        if number is None or not numbers:
            return Loading(f"model {name!r}: is being loaded")
        one_of = "one of " if len(numbers) > 1 else ""
        there_are = ", ".join(map(str, numbers))
        return UnknownModel(f"model {name!r} version {number}: expected {one_of}{there_are}")

    async def _refresh_model(self, name: str, candidates: list[Candidate]) -> None:
        """Bring those of these candidates, newest first, into service that the policy wants."""
        await self._forget_failures(name, candidates)
        stay = set()
        for candidate in candidates:
            if self._version_of(candidate) is None:
                async with self._loading:
                    if self._tasks.is_outdated(candidate):
                        return  # a later look follows, which found something else
                    await self._load_version(candidate)
            # Also where it is not this candidate that serves, but the file which this one replaced.
            if candidate.version in self._serving.get(name, {}):
                stay.add(candidate.version)
                if self._version_policy == "latest":
                    break
        self._keep_serving(name, stay)
        self._show_failures(name)
        if all(version.name != name for version in self._versions):
            self._series.forget_model(name)  # no version is left whose retirement would do so
        elif not candidates:
            self._series.hide(name)

    def _keep_serving(self, name: str, numbers: set[int]) -> None:
        """Retire all other versions of a model."""
        serving = self._serving.get(name, {})
        kept = {number: version for number, version in serving.items() if number in numbers}
        if kept:
            self._serving[name] = kept
        elif serving:
            del self._serving[name]
            self._series.show_ready(name, False)
        for number in serving.keys() - numbers:
            self._retire(serving[number])

    async def _forget_failures(self, name: str, candidates: list[Candidate]) -> None:
        """Leave only those that a further attempt would come to as well."""
        failed = [v for v in self._versions if v.name == name and v.state is ModelState.FAILED]
        for version in failed:
            if version.candidate not in candidates or (
                # Rights and volumes come back, and the file is the same as before.
                version.unreadable and await asyncio.to_thread(can_be_read, version.candidate.path)
            ):
                self._versions.remove(version)

    def _show_failures(self, name: str) -> None:
        failed = (v for v in self._versions if v.name == name and v.state is ModelState.FAILED)
        self._series.show_failed(name, len([*failed]))

    def _version_of(self, candidate: Candidate) -> Version | None:
        for version in self._versions:
            if version.candidate == candidate and version.state is not ModelState.RETIRING:
                return version
        return None

    async def _load_version(self, candidate: Candidate) -> None:
        """Load a version and put it into service, or keep why it could not be."""
        version = Version(candidate)
        self._versions.append(version)
        self._series.show_ready(version.name, version.name in self._serving)
        self._on_change()
        started = time.monotonic()
        try:
            model = await asyncio.get_running_loop().run_in_executor(
                self._loader, self._load, candidate.path
            )
            version.served = Served(model.spec, self._start_batcher(version.name, model))
        except ModelError as error:
            self._fail(version, error)
        else:
            self._put_into_service(version, model, time.monotonic() - started)
        self._on_change()

    def _put_into_service(self, version: Version, model: Model, seconds: float) -> None:
        version.state = ModelState.READY
        serving = self._serving.get(version.name, {})
        added = serving | {version.number: version}
        self._serving[version.name] = dict(sorted(added.items(), reverse=True))
        if self._version_policy == "latest":
            self._keep_serving(version.name, {version.number})
        if version.number in serving:
            self._retire(serving[version.number])
        self._series.begin(version, seconds)
        logger.info(
            "model %s version %d serves in %s on %s, loaded in %.2f s, sha256 %s",
            *(version.name, version.number, model.spec.precision, model.spec.provider),
            *(seconds, model.spec.digest),
        )

    def _fail(self, version: Version, error: ModelError) -> None:
        version.state = ModelState.FAILED
        version.error = error.problem
        version.unreadable = isinstance(error, UnreadableModel)
        self._series.fail(version)
        if isinstance(error, ProviderUnavailable) and not self.settled:
            raise StartupError(str(error)) from error
        logger.error(
            "model %s version %d cannot be served until its file %s: %s",
            *(version.name, version.number),
            *("can be read" if version.unreadable else "changes", error),
        )

    def _retire(self, version: Version) -> None:
        """Let a version go that serves no more, as soon as its last call is answered."""
        version.state = ModelState.RETIRING
        self._series.end(version)
        if version.calls == 0:
            version.idle.set()
        task = asyncio.get_running_loop().create_task(self._finish(version))
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)

    async def _finish(self, version: Version) -> None:
        await version.idle.wait()
        assert version.served is not None
        await version.served.batcher.close()
        self._versions.remove(version)
        self._series.forget(version, self._versions, self._names)
        # Nobody waits for it: behind a load it may have to wait itself.
        self._loader.submit(_let_go, version)
        logger.info("model %s version %d is retired", version.name, version.number)
        self._on_change()


def _let_go(version: Version) -> None:
    """Free a retired version's memory, in the thread that loaded it."""
    version.served = None
    return_free_memory()
