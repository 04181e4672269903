"""Are generated digits digits, of all ten kinds? A classifier of real ones says.

    python benchmarks/digits_quality.py [RUN_OR_ARTIFACT]

The classifier (scikit-learn's MLP, 256 hidden units) is trained on 70 % of the 1,797 real digits at
the generator's size. It then names 2,000 generated ones. Without an argument the demo's run is
judged. Exits with 1 where a bar is missed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from gantrain.class_labels import choose_labels
from gantrain.data.datasets import load_dataset
from gantrain.latents import draw_latents
from gantrain.sampling import open_sampler

COUNT = 2000
FIRST_SEED = 1_000_000  # not the seeds of any committed picture
SMALLEST_SHARE, LARGEST_SHARE, SMALLEST_CONFIDENCE = 0.04, 0.20, 0.85


@dataclass(frozen=True)
class Judgement:
    """What the classifier says of generated digits, beside what it says of real ones."""

    shares: tuple[float, ...]  # of each class among the generated
    confidence: float  # mean of the largest probability, over that on held-out real digits
    accuracy: float  # on held-out real digits
    nearest_twins: float  # smallest distance between two of 64 generated, in grey levels a pixel

    @property
    def passes(self) -> bool:
        """Whether every bar is met."""
        return (
            min(self.shares) >= SMALLEST_SHARE
            and max(self.shares) <= LARGEST_SHARE
            and self.confidence >= SMALLEST_CONFIDENCE
        )


def judge(source: Path) -> Judgement:
    """Train the classifier at the generator's size and let it judge 2,000 generated digits."""
    sampler = open_sampler(source)
    seeds = np.arange(FIRST_SEED, FIRST_SEED + COUNT, dtype=np.uint64)
    labels = choose_labels(None, sampler.class_names, COUNT)
    latents = draw_latents(seeds, sampler.latent_dim)
    generated = sampler.generate(latents, labels)  # [n, height, width, 1]
    dataset = load_dataset("digits", image_size=generated.shape[1])
    assert dataset.labels is not None
    train_images, test_images, train_labels, test_labels = train_test_split(
        as_features(dataset.images), dataset.labels, test_size=0.3, random_state=0
    )
    classifier = MLPClassifier((256,), max_iter=200, random_state=0, tol=1e-3)
    classifier.fit(train_images, train_labels)
    real = classifier.predict_proba(test_images).max(axis=1).mean()
    probabilities = classifier.predict_proba(as_features(generated))  # [n, 10]
    shares = np.bincount(probabilities.argmax(axis=1), minlength=10) / COUNT
    return Judgement(
        shares=tuple(shares.tolist()),
        confidence=float(probabilities.max(axis=1).mean() / real),
        accuracy=float(classifier.score(test_images, test_labels)),
        nearest_twins=smallest_distance(generated[:64]),
    )


def as_features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images in any order of axes, one channel, as rows in [0, 1]."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def smallest_distance(images: NDArray[np.uint8]) -> float:
    """Mean absolute difference between the two most similar images, in grey levels."""
    rows = images.reshape(len(images), -1).astype(np.float32)
    distances = np.abs(rows[:, None] - rows[None]).mean(axis=2)
    return float(distances[np.triu_indices(len(rows), 1)].min())


def main() -> None:
    """Judge and print."""
    default = Path(__file__).parents[1] / "demo" / "run"
    judgement = judge(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
    shares = " ".join(f"{digit}: {share:.1%}" for digit, share in enumerate(judgement.shares))
    print(
        f"classes of {COUNT} generated   {shares}   (each {SMALLEST_SHARE:.0%} to "
        f"{LARGEST_SHARE:.0%})"
    )
    print(
        f"confidence over that on real  {judgement.confidence:.3f}   (at least "
        f"{SMALLEST_CONFIDENCE})"
    )
    print(f"classifier on held-out real   {judgement.accuracy:.1%}")
    print(f"most similar two of 64        {judgement.nearest_twins:.1f} grey levels a pixel apart")
    sys.exit(0 if judgement.passes else 1)


if __name__ == "__main__":
    main()
