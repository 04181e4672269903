"""A version of a model: its file, its state, what serves it, how many calls use it."""

import asyncio
import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from ganserve.batching.batcher import Batcher
from ganserve.models.model_files import Candidate
from ganserve.models.model_spec import ModelSpec


class ModelState(enum.Enum):
    """Whether a version can be asked for."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    RETIRING = "retiring"


@dataclass(frozen=True)
class Served:
    """What a loaded version needs to answer calls."""

    spec: ModelSpec
    batcher: Batcher
    count_images: Callable[[float], None]  # that were answered with


@dataclass(eq=False)
class Version:
    """A version that was loaded, is being loaded, or could not be."""

    candidate: Candidate
    state: ModelState = ModelState.LOADING
    served: Served | None = None  # set where READY, or RETIRING and in use
    error: str = ""  # set where FAILED; callers see it
    unreadable: bool = False  # FAILED only because its file cannot be read
    retry_at: float = math.inf  # on time.monotonic, where FAILED only for want of memory or threads
    calls: int = 0  # under way
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # retired, and no call under way

    @property
    def name(self) -> str:
        """The model's name."""
        return self.candidate.name

    @property
    def number(self) -> int:
        """The version's number."""
        return self.candidate.version
