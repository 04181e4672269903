"""How far images of a graph of lower precision are from those of the float32 one."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from gantrain.class_labels import Labels, spread_labels
from gantrain.errors import RunError
from gantrain.latents import draw_latents
from gantrain.pictures import Pixels
from gantrain.sampling import Latents, open_session, sample_session

_VISIBLE = 2  # grey levels; values that are off by more are counted
# Seeds, far from each other, from those that people look at and from those of the evaluation.
CALIBRATION: Final = np.arange(2**62, 2**62 + 256, dtype=np.uint64)
MEASURED: Final = CALIBRATION + np.uint64(2**32)


@dataclass(frozen=True)
class Inputs:
    """What a generator takes: latents and, if there are classes, labels."""

    latent_dim: int
    classes: int = 0

    def draw(self, seeds: NDArray[np.uint64]) -> tuple[Latents, Labels | None]:
        """Latents [n, latent_dim] of seeds [n], and labels [n] spread over the classes."""
        labels = spread_labels(self.classes, len(seeds)) if self.classes else None
        return draw_latents(seeds, self.latent_dim), labels


@dataclass(frozen=True)
class Distance:
    """How far images are from the float32 graph's."""

    psnr: float  # dB, of all values of all images together, with a peak of 255 grey levels
    share_off_by_more_than_2: float  # of values, by more than 2 grey levels
    share_different: float  # of values
    max_difference: int  # grey levels
    images: int
    first_seed: int

    def to_json(self) -> dict[str, Any]:
        """The fields as docs/artifact.md has them."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.psnr:.1f} dB from fp32, {self.share_off_by_more_than_2:.2%} of values off by "
            f"more than {_VISIBLE} grey levels, at most by {self.max_difference}"
        )


def measure_distance(pixels: Pixels, expected: Pixels) -> Distance:
    """Compare images [n, height, width, channels] of `MEASURED` with those of the float32 graph.

    Of equal images the PSNR is infinite, which JSON cannot say: 100 dB is the most that it is taken
    to be, also where one value of a million is off.
    """
    difference = np.abs(pixels.astype(np.int16) - expected)
    error = float(np.mean(difference.astype(np.float64) ** 2))
    return Distance(
        psnr=min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0,
        share_off_by_more_than_2=float(np.mean(difference > _VISIBLE)),
        share_different=float(np.mean(difference > 0)),
        max_difference=int(difference.max()),
        images=len(pixels),
        first_seed=int(MEASURED[0]),
    )


def refuse_below(distance: Distance, min_psnr: float, what: str) -> None:
    """Raise RunError where the PSNR is below what was asked for."""
    if distance.psnr < min_psnr:
        raise RunError(
            f"{what} is {distance.psnr:.1f} dB from fp32, {min_psnr - distance.psnr:.1f} dB below "
            f"the {min_psnr:g} dB of --min-psnr; nothing was published"
        )


def measured_images(
    model: onnx.ModelProto, inputs: Inputs, seeds: NDArray[np.uint64] = MEASURED
) -> Pixels:
    """The images that distances are measured on."""
    return sample_session(open_session(model.SerializeToString()), *inputs.draw(seeds))
