"""What the processes of a load test tell each other: a share each, and what came of it."""

from dataclasses import dataclass, field, replace
from typing import Self

from ganserve.client.channel_security import ChannelSecurity
from ganserve.load_test.latency_histogram import LatencyHistogram


@dataclass(frozen=True)
class References:
    """What the images of seeds 0, 1, ... must be.

    Attributes:
        model_digest: Of the version that made them.
        images: SHA-256 of each image's bytes, in hexadecimal.
    """

    model_digest: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class LoadPlan:
    """What is offered, by all processes or by one.

    Attributes:
        address: HOST:PORT.
        model: Its name; by default the server's default.
        rate: Calls a second of an open loop, at random times (a Poisson process); None: closed.
        concurrency: Calls under way of a closed loop.
        images_per_request: Images in one call.
        image_format: raw, png, jpeg or webp.
        class_label: Class of all images; for conditional models.
        seconds: Length of the window that is measured.
        warm_up_seconds: Load before it.
        connections: Connections of each process.
        timeout_seconds: How long a call may take.
        max_calls_under_way: Of an open loop; calls beyond are not sent, and counted so.
        security: TLS and token.
        references: Where answers are verified, what they must be.
        index: Of this process.
        processes: That share the load.
    """

    address: str
    model: str = ""
    rate: float | None = None
    concurrency: int = 8
    images_per_request: int = 1
    image_format: str = "raw"
    class_label: int | None = None
    seconds: float = 10.0
    warm_up_seconds: float = 1.0
    connections: int = 1
    timeout_seconds: float = 30.0
    max_calls_under_way: int = 4096
    security: ChannelSecurity = field(default_factory=ChannelSecurity)
    references: References | None = None
    index: int = 0
    processes: int = 1

    def shares(self, processes: int) -> list[Self]:
        """Split among processes, each of which has at least one call under way in a closed loop.

        Arrivals of a Poisson process split so are Poisson processes again, independent ones.
        """
        if self.rate is None:
            processes = min(processes, self.concurrency)
        return [
            replace(
                self,
                rate=None if self.rate is None else self.rate / processes,
                concurrency=_part(self.concurrency, index, processes),
                max_calls_under_way=max(1, _part(self.max_calls_under_way, index, processes)),
                index=index,
                processes=processes,
            )
            for index in range(processes)
        ]


@dataclass
class LoadTally:
    """What one process saw of the calls that were meant to start in the window.

    Attributes:
        latencies: Status code to the times of the calls that ended so, from the intended start.
        error_details: Status code to what the first call that failed so was told.
        lateness: Open loop: by how much calls started later than intended.
        completed: Calls that ended well within the window, whenever they began.
        not_sent: Calls left out because as many as allowed were under way.
        too_late: Calls left out because the tester came to them later after the window than a call
            may take.
        unfinished: Calls under way when the test was interrupted.
        verified, wrong, other_version: Calls whose images were compared: all, those of other bytes,
            and those of another version of the model, which may differ.
        wrong_requests: The first seeds of some of the wrong ones.
        window_seconds: Time measured so far.
        cpu_seconds, cpu_window_seconds: CPU time of this process, and in what time.
        interrupted: Whether the window was cut short.
    """

    latencies: dict[str, LatencyHistogram] = field(default_factory=dict)
    error_details: dict[str, str] = field(default_factory=dict)
    lateness: LatencyHistogram = field(default_factory=LatencyHistogram)
    completed: int = 0
    not_sent: int = 0
    too_late: int = 0
    unfinished: int = 0
    verified: int = 0
    wrong: int = 0
    other_version: int = 0
    wrong_requests: list[int] = field(default_factory=list)
    window_seconds: float = 0.0
    cpu_seconds: float = 0.0
    cpu_window_seconds: float = 0.0
    interrupted: bool = False


def _part(whole: int, index: int, parts: int) -> int:
    """Of a whole that does not divide evenly, the first parts have one more."""
    return whole // parts + (index < whole % parts)
