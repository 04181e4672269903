import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gantrain.training.batches import DataOrder, load_batch, stream_seed


@given(
    count=st.integers(2, 40),
    batch=st.integers(1, 90),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 50),
)
def test_order_is_a_function_of_seed_and_position(count: int, batch: int, seed: int, step: int):
    walked, jumped = DataOrder(count, batch, seed), DataOrder(count, batch, seed)
    for number in range(step):
        walked.indices(number * batch)
    assert np.array_equal(walked.indices(step * batch), jumped.indices(step * batch))


@given(count=st.integers(2, 40), batch=st.integers(1, 90))
def test_every_epoch_shows_every_image_once(count: int, batch: int):
    order = DataOrder(count, batch, seed=3)
    seen = np.concatenate([order.indices(at) for at in range(0, 4 * count + batch, batch)])
    epochs = seen[: 4 * count].reshape(4, count)
    assert (np.sort(epochs) == np.arange(count)).all()


def test_epochs_and_seeds_differ():
    order, other = DataOrder(100, 100, seed=0), DataOrder(100, 100, seed=1)
    first = order.indices(0)
    assert not np.array_equal(first, order.indices(100))
    assert not np.array_equal(first, other.indices(0))


def test_batches_reach_from_minus_one_to_one():
    images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    chosen = torch.tensor([1, 0])
    batch = load_batch(images, chosen, False, torch.Generator(), -1.0, slice(None))
    assert batch.flatten().tolist() == [1.0, -1.0]


def test_flips_mirror_about_half_of_the_images_left_to_right():
    images = torch.tensor([[0, 255], [0, 255]], dtype=torch.uint8).expand(400, 1, 2, 2)
    noise = torch.Generator().manual_seed(0)
    batch = load_batch(images, torch.arange(400), True, noise, -1.0, slice(None))
    mirrored = batch[:, 0, 0, 0] == 1
    assert 150 < mirrored.sum() < 250
    assert (batch[mirrored] == torch.tensor([1.0, -1.0])).all()
    assert (batch[~mirrored] == torch.tensor([-1.0, 1.0])).all()


def test_streams_of_neighbouring_positions_have_nothing_in_common():
    seeds = {stream_seed(seed, position) for seed in range(3) for position in range(0, 6400, 64)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
