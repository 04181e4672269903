"""Hides how rows of metrics become a judgement: whether a run is healthy, and what would help.

Pure: the rows say it all. A rule speaks only on evidence that lasts, medians over the last fifth of
the run so far, and of samples by what reals of the same number would show.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gantrain.config import TrainConfig
from gantrain.config_rules import has_penalty
from gantrain.diagnosis import advice
from gantrain.diagnosis.evidence import EARLY_STEPS, Evidence, Row
from gantrain.losses import create_loss

_EARLY_SHARE: Final = 0.05  # of the run, unless it has had
_ENOUGH_STEPS: Final = 2_000
_FEWEST_ROWS: Final = 10  # that tell a swing

# Accuracies. A gradient penalty keeps the generator's gradient useful where the discriminator is
# nearly always right, so it takes more there to do harm.
_OVERWHELMS: Final = 0.9
_OVERWHELMS_PENALISED: Final = 0.95
_STALLED: Final = 0.55
_FOOLED: Final = 0.4  # on one side
_HEALTHY: Final = "60-80 %"

_FEW_DIFFERENT: Final = 0.5  # diversity over that of the data
_MANY_DUPLICATES: Final = 0.25  # share of samples, above that of reals
_FEW_CLASSES: Final = 0.8  # of the classes that reals cover
_WANDERING: Final = 0.3  # total variation between histograms, above that of reals
_MANY_COPIES: Final = 0.1  # share of samples, above that of held-out reals
_MANY_NEAR: Final = 0.25  # likewise
_MANY_DOTS: Final = 1e-3  # share of pixels, above three times that of the data
_LARGE_LOGITS: Final = 100.0
_ABSURD_LOGITS: Final = 1_000.0
_GROWING: Final = 2.0
_EXPLODING: Final = 30.0
_ACCURACY_SWING: Final = 0.5
_LOSS_SWING: Final = 3.0

_MEANINGS: Final = {
    "too early to tell": "All runs look alike in their first steps.",
    "healthy": "Nothing is wrong, and by the quick measurements below samples are almost as near "
    "to the data as reals. `gantrain evaluate` measures more closely.",
    "still learning": "Nothing is wrong, but samples are not yet as near to the data as reals: let "
    "the run go on or, when it has ended, give a larger `--total-images`.",
}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run."""

    name: str  # short, part of the state
    evidence: str  # a sentence with numbers
    advice: tuple[str, ...]  # most helpful first, in the run's own flags and values


@dataclass(frozen=True)
class Diagnosis:
    """How a run does."""

    state: str  # short
    findings: tuple[Finding, ...]

    @property
    def meaning(self) -> str:
        """A sentence about a state without findings, which speak for themselves."""
        return _MEANINGS[self.state] if not self.findings else ""


def diagnose(rows: Sequence[Row], config: TrainConfig) -> Diagnosis:
    """Judge a run by all its rows of metrics, oldest first; the last one is the present.

    The state is "too early to tell", "too short to tell" (it ended so early), "healthy", "still
    learning" (nothing is wrong, samples do not pass for the data yet) or the names of what is
    wrong.
    """
    if not rows:
        return Diagnosis("too early to tell", ())
    evidence = Evidence(rows, config)
    finding = _diverged(evidence)
    finding = finding or _too_short(evidence)
    if finding:
        return Diagnosis(finding.name, (finding,))
    if _too_early(evidence):
        return Diagnosis("too early to tell", ())
    findings = tuple(found for rule in _RULES if (found := rule(evidence)))
    sound = "healthy" if evidence.matching or not evidence.measured else "still learning"
    return Diagnosis("; ".join(found.name for found in findings) or sound, findings)


def _too_early(evidence: Evidence) -> bool:
    """Every run starts with a discriminator that overwhelms and samples that are all alike."""
    images = evidence.rows[-1]["images_seen"]
    steps: float = images / evidence.config.images_per_step
    begun: bool = images < _EARLY_SHARE * evidence.config.total_images and steps < _ENOUGH_STEPS
    return steps < EARLY_STEPS or begun


def _too_short(evidence: Evidence) -> Finding | None:
    """A run that is over, and was too early to tell to its end."""
    images, config = evidence.rows[-1]["images_seen"], evidence.config
    needed = EARLY_STEPS * config.images_per_step
    if not config.total_images <= images < needed:
        return None
    return Finding(
        "too short to tell",
        f"It ended after {images // config.images_per_step} steps; before {EARLY_STEPS} of them, "
        f"which are {needed} images, all runs look alike.",
        advice.go_on(config, needed),
    )


def _diverged(evidence: Evidence) -> Finding | None:
    """Values that are not finite, or logits without any bound; never too early to tell.

    A run that they ended has said itself what was wrong, for JSON knows no such numbers.
    """
    row = evidence.rows[-1]
    told = row.get("diverged") or _lost_bounds(row, evidence.config)
    if not told:
        return None
    return Finding("diverged", f"By {row['images_seen']} images {told}.", evidence.steadying)


def _lost_bounds(row: Row, config: TrainConfig) -> str:
    """What of a row is not finite or without any bound, empty if nothing is."""
    values = {name: value for name, value in row.items() if isinstance(value, float)}
    lost = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if lost:
        return f"{lost} became {row[lost]}"
    if _logit_size(row, config) > _ABSURD_LOGITS:
        return f"logits are as large as {row['logit_size']:.3g}"
    return ""


def _logit_size(row: Row, config: TrainConfig) -> float:
    """How large logits are, or where only their differences mean something, how far apart."""
    if create_loss(config.loss).threshold is None and {"real_logits", "fake_logits"} <= row.keys():
        return abs(float(row["real_logits"]) - float(row["fake_logits"]))
    return float(row.get("logit_size", 0.0))


def _diverging(evidence: Evidence) -> Finding | None:
    """Logits or gradients that keep growing."""
    half = evidence.rows[-1]["images_seen"] / 2
    earlier = [row for row in evidence.rows if half / 2 <= row["images_seen"] <= half]
    if not earlier:
        return None
    sizes = [
        float(np.median([_logit_size(row, evidence.config) for row in rows]))
        for rows in (earlier, evidence.recent)
    ]
    told = ""
    if sizes[1] > max(_LARGE_LOGITS, _GROWING * sizes[0]):
        told = f"logits have grown from {sizes[0]:.3g} to {sizes[1]:.3g}"
    for network in ("discriminator", "generator"):
        before = evidence.median(f"{network}_gradient", earlier)
        now = evidence.median(f"{network}_gradient")
        if not told and before and now and now > _EXPLODING * before and now > 1:
            told = f"the gradient of the {network} has grown from {before:.3g} to {now:.3g}"
    if not told:
        return None
    since = f"Since {half / 2:.0f} to {half:.0f} images"
    return Finding("diverging", f"{since} {told}.", evidence.steadying)


def _imbalance(evidence: Evidence) -> Finding | None:
    """The discriminator's accuracy, where samples are not good all the same."""
    real = evidence.median("discriminator_accuracy_real")
    fake = evidence.median("discriminator_accuracy_fake")
    if real is None or fake is None or evidence.matching:
        return None
    config, accuracy = evidence.config, (real + fake) / 2
    told = (
        f"The discriminator is right about {_percent(real)} of the reals and {_percent(fake)} of "
        f"the fakes (healthy is {_HEALTHY})"
    )
    bound = _OVERWHELMS_PENALISED if has_penalty(config) else _OVERWHELMS
    if accuracy >= bound and config.loss == "wasserstein":
        # A critic that estimates a distance is meant to tell the two apart.
        if evidence.improving or not evidence.measured:
            return None
        return Finding(
            "stalled",
            f"The critic is right about {_percent(real)} of the reals and {_percent(fake)} of the "
            "fakes, as it should be, yet samples have hardly come nearer to the data in the last "
            "half of the run.",
            advice.refine(config),
        )
    if accuracy >= bound:
        slowly = ", and samples improve slowly" if evidence.improving else ""
        return Finding(
            "discriminator overwhelms", f"{told}{slowly}.", advice.weaken_discriminator(config)
        )
    if accuracy <= _STALLED and evidence.apart and not evidence.improving:
        return Finding(
            "discriminator too weak" if min(real, fake) < _FOOLED else "stalled",
            f"{told}, yet the samples are far from the data.",
            advice.strengthen_discriminator(config),
        )
    return None


def _collapse(evidence: Evidence) -> Finding | None:
    """Samples that are alike, or leave classes out."""
    newest = evidence.newest
    if not newest:
        return None
    told = []
    duplicates, usual = newest["duplicates"], newest["duplicates_data"]
    if duplicates > usual + _MANY_DUPLICATES:
        told.append(
            f"{_percent(duplicates)} of 256 samples have a near-duplicate among them "
            f"({_percent(usual)} of reals)"
        )
    diversity = min(newest["diversity"], newest["feature_diversity"])
    if diversity < _FEW_DIFFERENT:
        told.append(f"samples differ by {_percent(diversity)} of what reals differ by")
    covered, usual = newest["class_coverage"], newest["class_coverage_data"]
    severe = bool(told) or (covered < usual / 2 and evidence.apart)
    if covered < _FEW_CLASSES * usual:
        told.append(f"{_percent(covered)} of the classes or clusters appear ({_percent(usual)})")
    # Which classes are there changes early on, and small ones come late.
    if not told or (not severe and (evidence.improving or len(evidence.measured) < 2)):
        return None
    sentence = "; ".join(told)
    return Finding(
        "mode collapse" if severe else "partial mode collapse",
        f"{sentence[0].upper()}{sentence[1:]}.",
        advice.keep_diversity(evidence.config),
    )


def _rotation(evidence: Evidence) -> Finding | None:
    """Histograms of classes that wander, never near the data's."""
    last = evidence.measured[-5:]
    if len(last) < 4:
        return None
    histograms = np.array([row["class_histogram"] for row in last])
    usual = last[-1]["class_distance_data"]
    moved = float(np.median(np.abs(np.diff(histograms, axis=0)).sum(1) / 2))
    away = float(np.median([row["class_distance"] for row in last]))
    # Two groups of reals differ by about the root of two times what one differs from all reals.
    if moved < 1.4 * usual + _WANDERING or away < usual + _WANDERING:
        return None
    return Finding(
        "rotating among classes",
        f"From one look to the next {_percent(moved)} of the samples change class "
        f"({_percent(1.4 * usual)} by chance), and the classes are never those of the data.",
        advice.keep_diversity(evidence.config),
    )


def _oscillation(evidence: Evidence) -> Finding | None:
    """Accuracies or losses that swing far and fast."""
    swings = {
        name: np.quantile([row[name] for row in rows], [0.1, 0.9])
        for name in ("discriminator_accuracy_real", "discriminator_accuracy_fake", "generator_loss")
        if len(rows := [row for row in evidence.recent if name in row]) >= _FEWEST_ROWS
    }
    told = ""
    for name, (low, high) in swings.items():
        if name != "generator_loss" and high - low > _ACCURACY_SWING:
            told = (
                f"The discriminator's accuracy on {name.rpartition('_')[2]}s swings between "
                f"{_percent(low)} and {_percent(high)}"
            )
    middle = evidence.median("generator_loss")
    if not told and middle is not None and "generator_loss" in swings:
        low, high = swings["generator_loss"]
        unbounded = evidence.config.loss in ("wasserstein", "hinge")  # may be 0 at rest
        if not unbounded and high - low > _LOSS_SWING * max(abs(middle), 0.1):
            told = f"The generator's loss swings between {low:.3g} and {high:.3g}"
    if not told:
        return None
    return Finding("oscillating", f"{told}.", evidence.steadying)


def _memorisation(evidence: Evidence) -> Finding | None:
    """Samples that are training images."""
    newest = evidence.newest
    if "copies" not in newest or "dead_pixels" not in newest:
        return None  # two coordinates cannot help being near others
    copies, usual_copies = newest["copies"], newest["copies_data"]
    near, usual_near = newest["near_training"], newest["near_training_data"]
    if copies <= usual_copies + _MANY_COPIES and near <= usual_near + _MANY_NEAR:
        return None
    return Finding(
        "memorising",
        f"{_percent(copies)} of the samples copy a training image ({_percent(usual_copies)} of "
        f"held-out images do); {_percent(near)} are nearer to one than the nearest 1 % of held-out "
        "images.",
        advice.see_more(evidence.config),
    )


def _dead_pixels(evidence: Evidence) -> Finding | None:
    """Isolated dots that were there at the look before, too; early samples are full of them."""
    looks = [row for row in evidence.measured[-2:] if "dead_pixels" in row]
    if len(looks) < 2:
        return None
    usual = evidence.newest["dead_pixels_data"]
    if min(row["dead_pixels"] for row in looks) <= 3 * usual + _MANY_DOTS:
        return None
    dots = evidence.newest["dead_pixels"]
    return Finding(
        "dead pixels",
        f"{_percent(dots, 2)} of the samples' pixels are isolated dots; {_percent(usual, 3)} of "
        "the data's are.",
        advice.mend_pixels(evidence.config),
    )


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


_RULES: Final[tuple[Callable[[Evidence], Finding | None], ...]] = (
    _diverging,
    _imbalance,
    _collapse,
    _rotation,
    _oscillation,
    _memorisation,
    _dead_pixels,
)
