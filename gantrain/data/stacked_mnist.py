"""Hides Stacked-MNIST: three random digits as red, green and blue make a data set of 1000 modes."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gantrain.data.bad_data import DatasetError

PREFIX: Final = "stacked-mnist:"  # before the folder of MNIST-format files
STACKED_KIND: Final = "stacked MNIST"  # of such data
STACKS: Final = {"train": 128_000, "test": 26_000}  # as many as PacGAN trains on and samples
CLASS_NAMES: Final = tuple(f"{number:03d}" for number in range(1000))
_KEYS: Final = {"train": 0, "test": 1}  # of the random draws, so that the stacks never change


def stack_digits(
    digits: NDArray[np.uint8], labels: NDArray[np.int64], split: str, limit: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Stack three random digits per image, the protocol of Lin et al. 2018 (PacGAN).

    The 128,000 stacks of the training split take 301 MB at 28x28 pixels, those of the test split
    61 MB; which digits are stacked follows from the split and the number of digits alone.

    Args:
        digits: `[count, 1, height, width]` of one split of MNIST.
        labels: `[count]`, 0 to 9.
        split: "train" or "test".
        limit: make only so many, which are the first of those made without it.

    Returns:
        Images `[stacks, 3, height, width]` and labels `[stacks]`: the number whose hundreds are
        the red digit, tens the green, ones the blue.

    Raises:
        DatasetError: there are labels above 9.
    """
    if labels.max() > 9:
        raise DatasetError(
            f"{PREFIX[:-1]}: expected digits, labels 0 to 9, got a label {labels.max()}; give a "
            "folder of ten classes, such as MNIST"
        )
    count = min(limit or STACKS[split], STACKS[split])
    # NumPy promises the words of this generator for all versions, unlike its random integers.
    words = np.asarray(np.random.Philox(key=_KEYS[split]).random_raw(3 * count), np.uint64)
    chosen = (words % np.uint64(len(digits))).astype(np.int64).reshape(count, 3)
    return digits[chosen, 0], labels[chosen] @ np.array([100, 10, 1])
