"""What the doctor advises can be done: the command line takes it, and the run changes as said."""

import re
import shlex
from functools import cache

import pytest
from pydantic_settings import CliApp, get_subcommand

from gantrain.cli_options import Gantrain
from gantrain.config import TrainConfig
from gantrain.config_rules import has_penalty
from gantrain.data.datasets import load_source
from gantrain.diagnosis import advice
from gantrain.errors import UsageError
from gantrain.presets import PRESETS, resolve
from gantrain.training.run_setup import settle_config

POINTS = {"sine": "sine", "points": "ring8"}
IMAGES = 600
# Settings that call for some advice, rule some out, or lie at a limit; what a preset refuses of
# them is left out.
VARIANTS = [
    {},
    {"discriminator_updates": 5},
    {"discriminator_updates": 100},
    {"generator_updates": 5},
    {"reuse_fakes": True},
    {"reuse_fakes": False, "fakes_in_inference_mode": True},
    {"loss": "bce", "r1_weight": 0.0, "r2_weight": 0.0},
    {"loss": "bce", "label_smoothing": 0.2, "r1_weight": 0.0, "r2_weight": 0.0},
    {"loss": "bce", "discriminator_step": "two-steps", "r1_weight": 0.0, "r2_weight": 0.0},
    {"loss": "saturating"},
    {"loss": "least-squares"},
    {"loss": "hinge", "spectral_norm": True},
    {"loss": "wasserstein", "weight_clip": 0.01},
    {"loss": "wasserstein", "weight_clip": 0.01, "discriminator_step": "two-steps"},
    {"loss": "wasserstein", "gradient_penalty_weight": 10.0},
    {"loss": "wasserstein", "gradient_penalty_weight": 1e5},
    {"loss": "relativistic", "discriminator_step": "joint", "r1_weight": 0.0, "r2_weight": 0.0},
    {"r1_weight": 1.0, "r2_weight": 1.0},
    {"r1_weight": 1e36},
    {"r1_weight": 1e308, "r2_weight": 1e308},
    {"lr": 0.5},
    {"lr": 0.5, "discriminator_lr": 1.0},
    {"discriminator_lr": 0.1},
    {"discriminator_lr": 1e-6},
    {"beta1": 0.9, "ema_half_life_images": 0},
    {"optimizer": "rmsprop"},
    {"filters": 1},
    {"filters": 1024},
    {"discriminator_filters": 8},
    {"discriminator_filters": 1024},
    {"generator": "dcgan", "discriminator": "keras-mlp"},
    {"generator": "keras-mlp", "discriminator": "dcgan-2015", "image_size": 28},
    {"conditional": True},
    {"augment": "color", "flip": "on"},
    {"max_data_images": IMAGES, "batch_size": 512},
    {"total_images": 1},
    {"on_divergence": "rollback"},
]
ADVISERS = {
    "weaken": advice.weaken_discriminator,
    "strengthen": advice.strengthen_discriminator,
    "refine": advice.refine,
    "keep diversity": advice.keep_diversity,
    "steady": advice.steady,
    "steady after rollbacks": lambda config: advice.steady(config, 3),
    "see more": advice.see_more,
    "mend pixels": advice.mend_pixels,
}
_ANOTHER_VALUE = re.compile(
    r"(--[a-z0-9-]+) \S+: (?:it draws each pixel by itself; )?(?:use|try)(?: at (?:most|least))?"
    r"(?: --lr's)? (?!--)(\S+?),?(?= |$)"
)
_FLAGS = re.compile(
    r"(?:use|with) (?!--lr's)((?:--[a-z0-9-]+(?: (?!--|and )[a-z0-9.+-]+)?(?: (?=--))?)+)"
)
_LEFT_OUT = re.compile(r"leave (--[a-z0-9-]+) out")


def as_command_line(text: str) -> tuple[str, ...]:
    """The flags that a reader of the advice would add, in its own words."""
    pairs = [word for found in _ANOTHER_VALUE.findall(text) for word in found]
    return (*pairs, *(word for flags in _FLAGS.findall(text) for word in shlex.split(flags)))


@cache
def parse(flags: tuple[str, ...]) -> dict[str, object]:
    """What the program's own parser makes of them."""
    arguments = ["train", "--data=digits", "--run-dir=unused", *flags]
    command = get_subcommand(CliApp.run(Gantrain, cli_args=arguments))
    assert isinstance(command, TrainConfig)
    return command.model_dump(include=command.model_fields_set - {"data", "run_dir"})


@cache
def load(source: str, image_size: int | None, channels: int | None):
    limit = None if source in POINTS.values() else IMAGES
    return load_source(source, image_size=image_size, channels=channels, limit=limit)


def settle(explicit: dict[str, object]) -> TrainConfig:
    config = resolve({"run_dir": "unused", **explicit})
    return settle_config(config, load(config.data, config.image_size, config.channels))


def of_preset(preset: str, **more: object) -> dict[str, object]:
    return {"preset": preset, "data": POINTS.get(preset, "digits"), **more}


def check_advice(text: str, explicit: dict[str, object], before: TrainConfig) -> None:
    """It is accepted beside what the run was started with, and changes what it says."""
    flags, left_out = as_command_line(text), _LEFT_OUT.findall(text)
    assert flags, f"no flag to give in {text!r}"
    advised = parse(flags)
    kept = {
        name: value
        for name, value in explicit.items()
        if f"--{name.replace('_', '-')}" not in left_out
    }
    try:
        after = settle({**kept, **advised})
    except UsageError as error:
        pytest.fail(f"{explicit}: {text!r} is refused: {error}")
    for name, value in advised.items():
        assert getattr(after, name) == value != getattr(before, name), f"{explicit}: {text!r}"
    if "gradient penalty" in text or "--r1-weight 0:" in text:
        assert has_penalty(after), f"{explicit}: {text!r} gives none"


@pytest.mark.parametrize("preset", PRESETS)
def test_all_advice_can_be_taken_and_changes_what_it_says(preset: str):
    tried = 0
    for variant in VARIANTS:
        explicit = of_preset(preset, **variant)
        try:
            before = settle(explicit)
        except UsageError:
            continue
        for adviser in ADVISERS.values():
            for text in adviser(before):
                if text.startswith("give more images"):
                    continue
                check_advice(text, explicit, before)
                tried += 1
    assert tried > 300


@pytest.mark.parametrize("preset", ["dcgan-2015", "keras-mlp", "selu-dense", "torch-mlp", "sine"])
def test_penalties_are_advised_with_the_weights_that_the_flagship_has_on_the_data(preset: str):
    config = settle(of_preset(preset))
    shape = {} if preset in POINTS else {"image_size": config.image_size}
    flagship = settle({"data": config.data, **shape})
    advised = parse(as_command_line(advice.keep_diversity(config)[0]))
    for name in ("r1_weight", "r2_weight"):
        assert advised[name] == pytest.approx(getattr(flagship, name), rel=0.005)
    assert advised["loss"] == "relativistic"


@pytest.mark.parametrize(
    ("explicit", "flag"),
    [
        pytest.param(of_preset("keras-mlp"), "filters", id="fixed-sizes"),
        pytest.param(of_preset("torch-mlp"), "filters", id="fixed-sizes-of-pytorch"),
        pytest.param(of_preset("dcgan", filters=1024), "filters 1024: try 2048", id="widest"),
        pytest.param(of_preset("dcgan", filters=1), "--filters", id="narrowest-has-no-half"),
        pytest.param(
            of_preset("dcgan", generator="dcgan", discriminator="keras-mlp"),
            "filters 64: try 128",
            id="they-would-widen-the-generator-alone",
        ),
        pytest.param(
            of_preset("dcgan", max_data_images=IMAGES, batch_size=512),
            "--batch-size",
            id="more-than-the-images",
        ),
    ],
)
def test_what_cannot_be_done_is_not_advised(explicit: dict[str, object], flag: str):
    config = settle(explicit)
    advisers = ADVISERS
    if explicit.get("filters") == 1:
        advisers = {"see more": advice.see_more}  # twice as wide is possible
    texts = [text for adviser in advisers.values() for text in adviser(config)]
    assert texts
    assert not [text for text in texts if flag in text]


@pytest.mark.parametrize(
    ("widths", "told"),
    [
        pytest.param({}, "--discriminator-filters 64: try 128", id="as-the-generator"),
        pytest.param({"discriminator_filters": 8}, "--discriminator-filters 8: try 16", id="own"),
    ],
)
def test_a_discriminator_that_is_too_weak_is_widened_alone(widths: dict[str, object], told: str):
    texts = advice.strengthen_discriminator(settle(of_preset("dcgan", **widths)))
    assert texts[-1] == told
    assert not [text for text in texts if "--filters" in text]


def test_a_larger_batch_than_the_data_may_hold_is_advised_with_that_in_mind():
    config = resolve({"data": "digits", "run_dir": "unused", "batch_size": 1024})
    texts = advice.keep_diversity(settle_config(config, load_source("digits")))
    assert "--batch-size 1024: try 2048, where the data have as many" in texts


def test_a_penalty_beside_which_nothing_else_counts_is_to_become_lighter():
    config = settle(of_preset("dcgan", image_size=32, r1_weight=1e36, r2_weight=0.5))
    texts = advice.steady(config)
    assert texts[0] == "--r1-weight 1e+36: use 0.5"
    assert not [text for text in texts if "1e+37" in text]


def test_after_rollbacks_a_learning_rate_is_advised_that_was_not_tried():
    config = settle(of_preset("dcgan", on_divergence="rollback", lr=0.002))
    told = advice.say_how_to_go_on(config, rollbacks=3)
    assert "--lr 0.002: try 0.000125" in told  # the third went on with 0.00025
    assert "--on-divergence" not in told


def test_a_run_that_would_stop_hears_of_going_back():
    config = settle(of_preset("dcgan", lr=0.5))
    assert advice.say_how_to_go_on(config, rollbacks=0) == (
        "In a new --run-dir, --lr 0.5: use at most 0.002; or --r1-weight 0.03125: try 0.3125, "
        "--r2-weight 0.03125: try 0.3125. In this one, --on-divergence rollback goes back and "
        "halves the learning rate"
    )
