"""The CPU provider takes a graph's id and runs the call as ever: so graphs are right there."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from ganserve.latents import draw_latents
from ganserve.models.bound_session import BoundSession
from ganserve.models.cuda_graphs import choose_graphs, time_in_turns
from tests.ganserve.tiny import reveal_pixels, write_artifact

SIZES = (1, 2, 4)


def run_once(session, binding):
    session.run_with_iobinding(binding)


def run_slowly(session, binding):
    for _ in range(200):
        session.run_with_iobinding(binding)


class Replaying:
    """A session that replays a graph once it was called three times with its id.

    That is what ONNX Runtime does with CUDA, where the replay is right if the buffers stay.
    """

    def __init__(self, session, *, replay=run_once, run=run_once):
        self._session = session
        self._replay, self._run = replay, run
        self.ids = []

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding, options):
        graph = options.get_run_config_entry("gpu_graph_id")
        self.ids.append(graph)
        replays = graph != "-1" and self.ids.count(graph) > 3
        (self._replay if replays else self._run)(self._session, binding)


@pytest.fixture
def plain(tmp_path):
    content = write_artifact(tmp_path).read_bytes()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.fixture
def choose():
    """Bind a session, hand it over and choose its graphs."""
    with ThreadPoolExecutor(1) as executor:

        def bind_and_choose(session, *, always=False):
            bound = BoundSession(session, SIZES, device="cpu", cuda_graphs=True)
            bound.hand_over(executor)
            return bound, choose_graphs(bound, feeds_of, always=always)

        yield bind_and_choose


def feeds_of(size, variant):
    seeds = np.arange(size, dtype=np.uint64) + np.uint64(1000 * variant)
    return {"latents": draw_latents(seeds, 4)}


def ids_of_calls(session, bound):
    """The graph of a call at each size."""
    session.ids.clear()
    for size in SIZES:
        feeds = feeds_of(size, 5)
        (images,) = bound.run(["images"], feeds)
        assert (images == reveal_pixels(feeds["latents"])).all()
    return session.ids


def test_all_sizes_are_graphs_where_that_is_wanted(plain, choose):
    session = Replaying(plain)
    bound, chosen = choose(session, always=True)
    assert chosen == SIZES
    assert ids_of_calls(session, bound) == ["1", "2", "3"]


def test_otherwise_those_that_are_quicker(plain, choose):
    session = Replaying(plain, run=run_slowly)
    bound, chosen = choose(session)
    assert chosen == SIZES
    assert ids_of_calls(session, bound) == ["1", "2", "3"]


def test_but_none_that_is_slower(plain, choose):
    session = Replaying(plain, replay=run_slowly)
    bound, chosen = choose(session)
    assert chosen == ()
    assert ids_of_calls(session, bound) == ["-1", "-1", "-1"]


def test_a_graph_that_makes_other_images_is_refused(plain, choose):
    stale = Replaying(plain, replay=lambda _session, _binding: None)
    with pytest.raises(RuntimeError, match="graph of batch size 1 makes other images"):
        choose(stale)


def test_what_cannot_be_captured_raises(plain, choose):
    def refuse(_session, _binding):
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        choose(Replaying(plain, replay=refuse))


def test_times_are_medians_of_turns_that_alternate():
    order = []
    seconds = {"a": iter([9.0, 1.0, 2.0]), "b": iter([3.0, 3.0, 0.5])}

    def timer(kind):
        def run():
            order.append(kind)
            return next(seconds[kind])

        return run

    assert time_in_turns({kind: timer(kind) for kind in "ab"}, 3) == {"a": 2.0, "b": 3.0}
    assert "".join(order) == "ababab"
