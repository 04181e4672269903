"""On the CPU provider, whose buffers are bound, written and read like those of a GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from ganserve.latents import draw_latents
from ganserve.models.bound_session import BoundSession
from tests.ganserve.tiny import reveal_pixels, write_artifact

SIZES = (1, 4, 16)


def open_plain(folder, **settings):
    return onnxruntime.InferenceSession(
        write_artifact(folder, **settings).read_bytes(), providers=["CPUExecutionProvider"]
    )


def bind(session, sizes=SIZES, cuda_graphs=False):
    return BoundSession(session, sizes, device="cpu", cuda_graphs=cuda_graphs)


def latents(count, first=0):
    return draw_latents(np.arange(first, first + count, dtype=np.uint64), 4)


def run(session, rows, labels=None):
    feeds = {"latents": rows} | ({} if labels is None else {"labels": labels})
    (images,) = session.run(["images"], feeds)
    return images


@pytest.fixture
def gpu_thread():
    with ThreadPoolExecutor(1, "gpu") as executor:
        yield executor


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_the_bits_are_those_of_the_session_itself(tmp_path, rows):
    plain = open_plain(tmp_path, network="convolutional")
    made = run(bind(plain), latents(rows))
    assert made.dtype == np.uint8
    assert np.array_equal(made, run(plain, latents(rows)))


@pytest.mark.parametrize("rows", [2, 3, 5, 15, 17, 40])
def test_other_numbers_of_rows_are_padded_or_split(tmp_path, rows):
    plain = open_plain(tmp_path, network="convolutional")
    assert np.array_equal(run(bind(plain), latents(rows)), run(plain, latents(rows)))


def test_labels_go_with_their_rows(tmp_path):
    session = bind(open_plain(tmp_path, class_names=["a", "b", "c"]))
    for rows in (3, 4, 21):
        labels = np.arange(rows, dtype=np.int64) % 3
        assert (run(session, latents(rows), labels) == reveal_pixels(latents(rows), labels)).all()


def test_rows_may_be_a_view_of_others(tmp_path):
    rows = latents(8)
    session = bind(open_plain(tmp_path))
    assert (run(session, rows[::2]) == reveal_pixels(rows[::2])).all()
    assert (run(session, np.asfortranarray(rows[4:])) == reveal_pixels(rows[4:])).all()


@pytest.mark.parametrize("rows", [3, 4])
def test_images_are_the_callers_own_whatever_is_called_next(tmp_path, rows):
    session = bind(open_plain(tmp_path))
    first = run(session, latents(rows))
    second = run(session, latents(rows, first=100))
    assert (first == reveal_pixels(latents(rows))).all()
    first[:] = 0
    assert (second == reveal_pixels(latents(rows, first=100))).all()


def test_callers_in_several_threads_get_their_own_images(tmp_path, gpu_thread):
    session = bind(open_plain(tmp_path))
    session.hand_over(gpu_thread)
    sizes = [1, 2, 4, 7, 16, 20] * 20
    with ThreadPoolExecutor(8) as callers:
        made = callers.map(lambda i: run(session, latents(sizes[i], first=i)), range(len(sizes)))
        for i, images in enumerate(made):
            assert (images == reveal_pixels(latents(sizes[i], first=i))).all()


def test_once_handed_over_one_thread_makes_all_calls(tmp_path, gpu_thread):
    session = bind(open_plain(tmp_path))
    assert session.call(threading.current_thread) is threading.current_thread()
    session.hand_over(gpu_thread)
    with ThreadPoolExecutor(4) as callers:
        threads = set(callers.map(lambda _: session.call(threading.current_thread), range(20)))
    (thread,) = threads
    assert thread.name.startswith("gpu")


def test_an_error_of_a_call_reaches_its_caller_and_no_other(tmp_path, gpu_thread):
    session = bind(open_plain(tmp_path))
    session.hand_over(gpu_thread)
    with pytest.raises(RuntimeError, match="does not match the size"):
        run(session, np.zeros((4, 5), np.float32))
    assert (run(session, latents(4)) == reveal_pixels(latents(4))).all()


def test_sizes_that_are_not_kept_are_padded_to_others(tmp_path):
    session = bind(open_plain(tmp_path))
    session.keep_only((4, 16))
    assert session.batch_sizes == (4, 16)
    assert (run(session, latents(1)) == reveal_pixels(latents(1))).all()


def test_calls_name_their_graph_where_there_are_graphs(tmp_path):
    plain = open_plain(tmp_path)
    graphs = []

    class Recording:
        """The session, and what each of its calls was told."""

        def __getattr__(self, name):
            return getattr(plain, name)

        def run_with_iobinding(self, binding, options):
            graphs.append(options and options.get_run_config_entry("gpu_graph_id"))
            plain.run_with_iobinding(binding, options)

    session = bind(Recording(), cuda_graphs=True)
    run(session, latents(4))
    session.use_graph(4, use=True)
    run(session, latents(4))
    run(session, latents(16))
    session.use_graph(16, use=True)
    assert (run(session, latents(16)) == reveal_pixels(latents(16))).all()
    session.use_graph(4, use=False)
    run(session, latents(4))
    assert graphs == ["-1", "2", "-1", "3", "-1"]  # 0 is ONNX Runtime's own
    graphs.clear()
    run(bind(Recording()), latents(4))
    assert graphs == [None]
