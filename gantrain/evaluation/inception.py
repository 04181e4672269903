"""Hides the Inception network and the library that make FID, KID and IS of it.

Only this network's features earn these names. Its weights are not part of this program: the user
names a file, or torch-fidelity downloads them.
"""

import importlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gantrain.errors import RunError, first_line

DOWNLOAD: Final = "download"
_CHUNK: Final = 32  # images; in the network each takes 299x299 pixels
_SUBSETS, _SUBSET_SIZE, _SPLITS, _SEED = 50, 1000, 10, 0
_ADVICE: Final = "install the extra `fid` with torch and torchvision of the same build"

Extract = Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 [n, 3, h, w] -> features and logits


class Inception:
    """The Inception network of Szegedy et al. 2015 in one of its two published conversions."""

    def __init__(self, weights: str) -> None:
        """Load the network.

        Args:
            weights: `download`; a file of torch-fidelity's weights; or a TorchScript file with the
                interface of NVIDIA's, which StyleGAN's metrics take.

        Raises:
            RunError: a library is missing, or the weights cannot be had or used.
        """
        self._metrics()  # before minutes are spent on features
        if weights != DOWNLOAD and not Path(weights).is_file():
            raise RunError(f"--inception {weights}: no such file; name one, or `{DOWNLOAD}`")
        scripted = weights != DOWNLOAD and is_torchscript(Path(weights))
        self._extract = open_torchscript(weights) if scripted else open_torch_fidelity(weights)

    def look(self, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Features [n, 2048] and logits [n, 1008] of images [n, channels, height, width]."""
        colours = np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images
        found = []
        with torch.no_grad():
            for start in range(0, len(colours), _CHUNK):
                chunk = np.ascontiguousarray(colours[start : start + _CHUNK])
                found.append(self._extract(torch.from_numpy(chunk)))
        features, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, logits

    def measure(self, real: Tensor, fake: Tensor, fake_logits: Tensor) -> dict[str, float]:
        """FID, KID and IS by torchmetrics, of features [n, f] and [m, f] and logits [m, classes].

        FID: Heusel et al. 2017; KID: Binkowski et al. 2018, on subsets of at most 1,000; IS:
        Salimans et al. 2016, in ten splits.
        """
        fid_of, kid_of, score_of = self._metrics()
        size = min(_SUBSET_SIZE, len(real), len(fake))
        with _quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            fid = fid_of(feature=_AsTheyAre(real.shape[1]))
            kid = kid_of(feature=_AsTheyAre(real.shape[1]), subsets=_SUBSETS, subset_size=size)
            for metric in (fid, kid):
                metric.update(real, real=True)
                metric.update(fake, real=False)
            score = score_of(feature=_AsTheyAre(fake_logits.shape[1]), splits=_SPLITS)
            score.update(fake_logits)
            return {
                "frechet_inception_distance": float(fid.compute()),
                "kernel_inception_distance": float(kid.compute()[0]),
                "inception_score": float(score.compute()[0]),
            }

    @staticmethod
    def _metrics() -> tuple[Any, Any, Any]:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
            from torchmetrics.image.inception import InceptionScore
            from torchmetrics.image.kid import KernelInceptionDistance
        except (ImportError, RuntimeError) as error:  # torchvision of another build than torch's
            raise RunError(
                f"--inception: torchmetrics cannot be used ({first_line(error)}): {_ADVICE}"
            ) from error
        return FrechetInceptionDistance, KernelInceptionDistance, InceptionScore


class _AsTheyAre(nn.Module):
    """Stands where torchmetrics would call the network: features were made once, for all three."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def is_torchscript(path: Path) -> bool:
    """Whether a file holds a network with its code, not weights alone."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def open_torchscript(path: str) -> Extract:
    """NVIDIA's conversion, which resizes by itself; raises RunError."""
    try:
        with _quiet():
            network = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise RunError(f"--inception {path}: cannot be loaded: {first_line(error)}") from error

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        try:
            features = network(images, return_features=True)
            probabilities = network(images, no_output_bias=True)
        except RuntimeError as error:
            raise RunError(
                f"--inception {path}: expected a network that takes return_features and "
                f"no_output_bias, as NVIDIA's does: {first_line(error)}"
            ) from error
        # Equal to the logits but for a constant; of a probability of 0 there is no logarithm.
        return features, probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()

    return extract


def open_torch_fidelity(weights: str) -> Extract:
    """torch-fidelity's conversion, which resizes as TensorFlow 1 did; raises RunError."""
    try:
        # Not by name, for not every installation has it, and its types are not published.
        library = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError) as error:  # likewise
        raise RunError(
            f"--inception {weights}: torch-fidelity cannot be used ({first_line(error)}): "
            f"{_ADVICE}, or name a TorchScript file of the network"
        ) from error
    path = None if weights == DOWNLOAD else weights
    try:
        kind = library.FeatureExtractorInceptionV3
        network = kind("inception-v3-compat", ["2048", "logits_unbiased"], path).eval()
    except Exception as error:  # no network, no room, a torn file: each library has its own
        what = "could not be downloaded" if path is None else "cannot be used"
        raise RunError(
            f"--inception {weights}: the weights {what}: {first_line(error)}; name a file of them"
        ) from error

    def extract(images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = network(images)
        return features, logits

    return extract


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from warning of their own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
