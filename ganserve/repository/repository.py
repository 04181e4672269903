"""The life of models: versions are found on disk, loaded, put into service, retired."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ganserve.batching.batcher import Batcher
from ganserve.cpus import lower_thread_priority
from ganserve.errors import ModelError, ProviderUnavailable, StartupError, UnreadableModel
from ganserve.memory import return_free_memory
from ganserve.metrics import Metrics
from ganserve.models.model import Model
from ganserve.models.model_files import Candidate, has_content
from ganserve.models.runtime import is_shortage
from ganserve.repository.model_index import ModelIndex
from ganserve.repository.model_series import ModelSeries
from ganserve.repository.model_tasks import ModelTasks
from ganserve.repository.repository_folder import RepositoryFolder
from ganserve.repository.versions import ModelState, Served, Version
from ganserve.setting_values import VersionPolicy

logger = logging.getLogger(__name__)

# A version for which memory or threads were short is loaded again after so many seconds, and so
# many times as long as that attempt took: the one that serves on shares its CPUs with each.
_RETRY_SECONDS = 60.0
_RETRY_TIMES = 10


class Repository:
    """The models of a folder `NAME/VERSION/model.onnx`.

    Which versions serve is the policy's: of each model the newest that can be loaded (`latest`),
    all that can be loaded, or those of the names and numbers in `versions` (`specific`). Where a
    call asks for none, the newest of those that serve is meant.

    `load` is called in a thread; `start_batcher` and `on_change`, called whenever a version
    changes its state, in the event loop.

    Attributes:
        index: where calls find their versions.
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
        """Raise StartupError if there can be no thread to load models in."""
        wanted = frozenset(versions) if version_policy == "specific" else None
        self._folder = RepositoryFolder(root, wanted, default_model)
        self._load = load
        self._start_batcher = start_batcher
        self._series = ModelSeries(metrics)
        self.index = ModelIndex(default_model)
        self._version_policy = version_policy
        self._on_change = on_change
        self._retirements: set[asyncio.Task[None]] = set()
        self._tasks = ModelTasks(self._refresh_model, self._settle)
        # One thread for all: each would keep memory of its own that a model leaves behind.
        self._loader = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="models", initializer=lower_thread_priority
        )
        try:
            self._loader.submit(int)  # starts the thread, which may not be to be had later
        except RuntimeError as error:
            raise StartupError(f"no thread to load models in: {error}") from error
        self._loading = asyncio.Lock()  # a version that waits has no state, and may still change

    @property
    def is_loading(self) -> bool:
        """Whether what a scan found is still being taken up."""
        return bool(self._tasks.names)

    @property
    def missing(self) -> Collection[tuple[str, int]]:
        """Names and numbers of versions that are to serve, but were not there at the last scan."""
        return self._folder.missing

    async def refresh(self, timeout_seconds: float | None = None) -> None:
        """Scan the folder once: load what is new, retire what is gone.

        Return when that is done. Where it takes longer than `timeout_seconds` it goes on, and
        another scan may come meanwhile: models wait for each other only to be loaded.

        Raises:
            StartupError: the first models cannot run on the device that was asked for.
        """
        try:
            scanned = await self._folder.scan()
            if scanned is not None:
                await self._take_up(*scanned, timeout_seconds)
        finally:
            self.index.first_scan_over.set()

    async def stop_loading(self) -> None:
        """Leave the models as they are."""
        await self._tasks.cancel()

    async def close(self) -> None:
        """Retire everything; return when the last call was answered."""
        await self.stop_loading()
        for name in self.index.serving_names:
            self._keep_serving(name, set())
        await asyncio.gather(*self._retirements)
        self._loader.shutdown(wait=False, cancel_futures=True)  # what loads now is of no use

    async def _take_up(
        self,
        found: Mapping[str, list[Candidate]],
        unreadable: Collection[str],
        timeout_seconds: float | None,
    ) -> None:
        """Bring each model up to what a scan found; those whose folders are unreadable stay."""
        index = self.index
        known = {version.name for version in index.versions}
        index.names = sorted({*found, *(name for name in index.names if name in unreadable)})
        for name in sorted({*found, *known, *self._tasks.names} - {*unreadable}):
            self._tasks.begin(name, found.get(name, []))
        await self._tasks.wait(timeout_seconds)
        if not self._tasks.names:  # there may have been none
            self._settle()
        self._on_change()

    def _settle(self) -> None:
        """All models of a scan are loaded or faulty, even where the scan did not wait for them."""
        if not self.index.settled:
            self.index.settled = True
            self._on_change()

    async def _refresh_model(self, name: str, candidates: list[Candidate]) -> None:
        """Bring those of these candidates, newest first, into service that the policy wants."""
        await self._forget_failures(name, candidates)
        stay = set()
        for candidate in candidates:
            if self._version_of(candidate) is None and not await self._load_in_turn(candidate):
                return  # the next scan decides, which may have come
            # Also where it is not this candidate that serves, but the file which this one replaced.
            if candidate.version in self.index.serving(name):
                stay.add(candidate.version)
                if self._version_policy == "latest":
                    break
        self._keep_serving(name, stay)
        versions = self.index.versions_of(name)
        failed = [version for version in versions if version.state is ModelState.FAILED]
        self._series.show_failed(name, len(failed))
        if not versions:
            self._series.forget_model(name)  # no version is left whose retirement would do so
        elif not candidates:
            self._series.hide(name)

    async def _load_in_turn(self, candidate: Candidate) -> bool:
        """Load a version once no other loads; False if what was found of its model is outdated.

        If the file is gone by then, so may be what the scan saw of the versions that serve.
        """
        async with self._loading:
            if self._tasks.is_outdated(candidate):
                return False
            if await self._is_copy(candidate):
                return True
            version = await self._load_version(candidate)
        is_gone = version.unreadable and await self._folder.is_gone(candidate)
        return not (is_gone and self.index.is_serving(candidate.name))

    async def _is_copy(self, candidate: Candidate) -> bool:
        """Whether a file holds what serves under its number; then it takes the other's place.

        If all folders are replaced at once, as by a link to a new copy, most files are the same.
        """
        version = self.index.serving(candidate.name).get(candidate.version)
        if version is None or version.candidate.stamp is None or candidate.stamp is None:
            return False
        size = candidate.stamp.size
        if size != version.candidate.stamp.size:
            return False
        assert version.served is not None
        is_copy = await asyncio.get_running_loop().run_in_executor(
            self._loader, has_content, candidate.path, size, version.served.spec.digest
        )
        if is_copy:
            version.candidate = candidate
        return is_copy

    def _keep_serving(self, name: str, numbers: set[int]) -> None:
        """Retire all other versions of a model."""
        serving = self.index.serving(name)
        kept = {number: version for number, version in serving.items() if number in numbers}
        self.index.serve(name, kept)
        if serving and not kept:
            self._series.show_ready(name, False)
        for number in serving.keys() - kept.keys():
            self._retire(serving[number])

    async def _forget_failures(self, name: str, candidates: list[Candidate]) -> None:
        """Forget failures that another attempt might not repeat."""
        can_be_read = self._folder.can_be_read
        there = {candidate.version: candidate for candidate in candidates}
        for version in self.index.versions_of(name):
            if version.state is ModelState.FAILED:
                is_gone = version.candidate != there.get(version.number)
                # Rights, volumes and memory come back, and the file is the same as before.
                is_due = time.monotonic() >= version.retry_at
                is_readable = version.unreadable and await can_be_read(version.candidate)
                if is_gone or is_due or is_readable:
                    self.index.remove(version)

    def _version_of(self, candidate: Candidate) -> Version | None:
        for version in self.index.versions_of(candidate.name, candidate.version):
            if version.candidate == candidate and version.state is not ModelState.RETIRING:
                return version
        return None

    async def _load_version(self, candidate: Candidate) -> Version:
        """Load a version and put it into service, or keep why it could not be."""
        version = Version(candidate)
        self.index.add(version)
        self._series.show_ready(version.name, self.index.is_serving(version.name))
        self._on_change()
        started = time.monotonic()
        try:
            model = await asyncio.get_running_loop().run_in_executor(
                self._loader, self._load, candidate.path
            )
            batcher = self._start_batcher(version.name, model)
            version.served = Served(model.spec, batcher, self._series.image_counter(version))
        except ModelError as error:
            self._fail(version, error, time.monotonic() - started)
        else:
            self._put_into_service(version, model, time.monotonic() - started)
        self._on_change()
        return version

    def _put_into_service(self, version: Version, model: Model, seconds: float) -> None:
        version.state = ModelState.READY
        serving = self.index.serving(version.name)
        self.index.serve(version.name, {**serving, version.number: version})
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

    def _fail(self, version: Version, error: ModelError, seconds: float) -> None:
        version.state = ModelState.FAILED
        version.error = error.problem
        version.unreadable = isinstance(error, UnreadableModel)
        self._series.fail(version)
        if isinstance(error, ProviderUnavailable) and not self.index.settled:
            raise StartupError(str(error)) from error
        until = "its file can be read" if version.unreadable else "its file changes"
        if not version.unreadable and is_shortage(error):
            pause = max(_RETRY_SECONDS, _RETRY_TIMES * seconds)
            version.retry_at = time.monotonic() + pause
            until = f"memory and threads suffice, tried again in {pause:.0f} s"
        logger.error(
            "model %s version %d cannot be served until %s: %s",
            *(version.name, version.number, until, error),
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
        self.index.remove(version)
        self._series.forget(version, self.index.versions, self.index.names)
        # Not awaited: it may have to wait until another model is loaded.
        self._loader.submit(_let_go, version)
        logger.info("model %s version %d is retired", version.name, version.number)
        self._on_change()


def _let_go(version: Version) -> None:
    """Free a retired version's memory, in the thread that loaded it."""
    version.served = None
    return_free_memory()
