"""The time series of models and versions in the metrics: when they begin, and when they go."""

from collections import deque
from collections.abc import Callable, Collection

from ganserve.metrics import Metrics
from ganserve.repository.versions import Version

# Versions that serve no more and whose images are still counted in the metrics: a last scrape finds
# them, and the number of series stays bounded.
_COUNTED_VERSIONS = 200


class ModelSeries:
    """The series of the models of one repository."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counted: deque[tuple[str, int]] = deque()  # retired, their images still shown

    def show_ready(self, name: str, ready: bool) -> None:
        """Show whether some version of a model serves."""
        self._metrics.model_ready.labels(name).set(ready)

    def show_failed(self, name: str, versions: int) -> None:
        """Show how many versions of a model are there that could not be loaded."""
        self._metrics.model_failed_versions.labels(name).set(versions)

    def hide(self, name: str) -> None:
        """Show no state of a model that is not there any more."""
        for gauge in (self._metrics.model_ready, self._metrics.model_failed_versions):
            gauge.remove_by_labels({"model": name})

    def image_counter(self, version: Version) -> Callable[[float], None]:
        """What counts the images of a version; its series begins with this."""
        # Looked up once: the look-up of a series costs more than its change.
        return self._metrics.images.labels(version.name, str(version.number)).inc

    def begin(self, version: Version, seconds: float) -> None:
        """Show that a version serves, after so many seconds of loading."""
        self._metrics.model_info.labels(*_info_labels(version)).set(1)
        self._metrics.model_loads.labels(version.name, "success").inc()
        self._metrics.model_load_seconds.labels(version.name).observe(seconds)
        self.show_ready(version.name, True)

    def fail(self, version: Version) -> None:
        """Count a version that could not be loaded."""
        self._metrics.model_loads.labels(version.name, "failure").inc()

    def end(self, version: Version) -> None:
        """Show that a version serves no more."""
        self._metrics.model_info.remove(*_info_labels(version))

    def forget(self, version: Version, others: Collection[Version], names: Collection[str]) -> None:
        """Drop what would grow with every version and model there ever was.

        `others` are the versions that have a state, `names` the models that are there.
        """
        known = {(other.name, other.number) for other in others}
        self._counted.append((version.name, version.number))
        while len(self._counted) > _COUNTED_VERSIONS:
            name, number = oldest = self._counted.popleft()
            if oldest not in known and oldest not in self._counted:
                self._metrics.images.remove_by_labels({"model": name, "version": str(number)})
        if version.name not in names and all(name != version.name for name, _ in known):
            self.forget_model(version.name)

    def forget_model(self, name: str) -> None:
        """Drop all that there is of a model that is gone with all of its versions."""
        metrics = self._metrics
        for metric in (
            *(metrics.compute_seconds, metrics.batch_images, metrics.images),
            *(metrics.padding_images, metrics.model_info, metrics.model_ready),
            *(metrics.model_loads, metrics.model_load_seconds, metrics.model_workers),
            metrics.model_failed_versions,
        ):
            metric.remove_by_labels({"model": name})


def _info_labels(version: Version) -> tuple[str, ...]:
    assert version.served is not None
    spec = version.served.spec
    return version.name, str(version.number), spec.digest, spec.provider, spec.seed_contract
