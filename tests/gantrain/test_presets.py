"""The presets follow their sources: sizes, settings, and what each trap in carrying them over."""

import json
import os
import re
import subprocess
import sys

import pytest

from gantrain.cli import run as gantrain
from gantrain.config import DiscriminatorName, GeneratorName, LossName, TrainConfig
from gantrain.data.point_sets import POINT_SETS
from gantrain.errors import UsageError
from gantrain.losses import LOSSES
from gantrain.networks import DISCRIMINATORS, GENERATORS
from gantrain.presets import PRESETS, describe_preset, resolve
from gantrain.training.run_setup import settle_config

# (total, trainable) of generator and discriminator, in Keras' way of counting. Those of keras-mlp,
# its swapped-in discriminator and the pair are stated by their tutorial; the others follow from
# the architectures.
COUNTS = {
    "keras-mlp": ((1_493_520, 1_489_936), (533_505, 533_505)),
    "keras-mlp-conv-critic": ((1_493_520, 1_489_936), (1_606_697, 1_606_697)),
    "keras-conv64": ((492_083, 487_731), (816_529, 815_569)),
    "selu-dense": ((136_634, 136_634), (132_951, 132_951)),
    "sine": ((658, 658), (41_985, 41_985)),
    "torch-mlp": ((1_486_352, 1_486_352), (1_460_225, 1_460_225)),
    "faces-rmsprop": ((14_953_987, 14_953_987), (2_040_065, 2_040_065)),
    "dcgan-2015": ((3_578_624, 3_576_704), (2_767_360, 2_765_568)),
    # Ours. 17 * 96 + 2 * 97 * 96 + 97 * 2, and 99 * 96 + 2 * 97 * 96 + 97 with 96 constants.
    "points": ((20_450, 20_450), (28_321, 28_225)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_as_many_parameters_as_its_source(name, capsys):
    assert gantrain(["presets", name, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["parameters"]
    found = tuple(
        (counts[network]["total"], counts[network]["trainable"])
        for network in ("generator", "discriminator")
    )
    assert found == COUNTS[name]


def test_the_pair_of_networks_has_the_stated_sum():
    parameters = describe_preset("keras-mlp-conv-critic")["parameters"]
    assert parameters["generator"]["total"] + parameters["discriminator"]["total"] == 3_100_217


# Settings that each source states, or that its library defaults to.
KERAS_ADAM = {"optimizer": "adam", "lr": 2e-4, "beta2": 0.999, "optimizer_eps": 1e-7}
STATED = {
    "keras-mlp": {
        **KERAS_ADAM,
        "beta1": 0.5,
        "latent_dim": 100,
        "batch_size": 128,
        "loss": "bce",
        "discriminator_step": "two-steps",
        "fakes_in_inference_mode": True,
        "sample_every": 1000 * 128,
    },
    "keras-conv64": {
        **KERAS_ADAM,
        "beta1": 0.9,
        "latent_dim": 100,
        "batch_size": 32,
        "filters": 16,
        "kernel_size": 5,
        "discriminator_updates": 1,
        "generator_updates": 1,
        "max_data_images": 10_000,
        "sample_every": 80 * 32,
        "total_images": 1000 * 200 * 32,
        "discriminator_step": "two-steps",
        "fakes_in_inference_mode": True,
    },
    "selu-dense": {
        "optimizer": "rmsprop",
        "lr": 1e-3,
        "rho": 0.9,
        "optimizer_eps": 1e-7,
        "seed": 42,
        "latent_dim": 30,
        "batch_size": 32,
        "discriminator_step": "joint",
        "discriminator_loss_weight": 0.5,
        "total_images": 50 * 60_000,
    },
    "sine": {
        "optimizer": "adam",
        "lr": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "optimizer_eps": 1e-8,
        "batch_size": 32,
        "total_images": 300 * 1024,
    },
    "torch-mlp": {"lr": 1e-4, "latent_dim": 100, "beta1": 0.9, "optimizer_eps": 1e-8},
    "faces-rmsprop": {
        "optimizer": "rmsprop",
        "lr": 1e-4,
        "gradient_clip": 1.0,
        "lr_decay": 1e-8,
        "latent_dim": 32,
        "image_size": 128,
        "max_data_images": 10_000,
        "total_images": 800 * 16,
    },
    "dcgan-2015": {
        "lr": 2e-4,
        "beta1": 0.5,
        "beta2": 0.999,
        "latent_dim": 100,
        "filters": 64,
        "discriminator_step": "separate",
        "reuse_fakes": True,
    },
}


@pytest.mark.parametrize("name", STATED)
def test_a_preset_has_the_settings_of_its_source(name):
    config = resolve({"preset": name, "data": "", "run_dir": ""})
    assert {key: getattr(config, key) for key in STATED[name]} == STATED[name]
    assert config.loss == "bce"
    assert (config.r1_weight, config.r2_weight, config.ema_half_life_images) == (0, 0, 0)


def test_an_epoch_is_what_each_source_calls_so():
    epochs = {name: preset.epoch_images for name, preset in PRESETS.items()}
    assert epochs["keras-mlp"] == 128, "one batch"
    assert epochs["keras-conv64"] == 200 * 32, "200 batches"
    assert epochs["selu-dense"] == epochs["torch-mlp"] == 60_000, "the data once"


def test_the_convolutional_critic_differs_in_nothing_else():
    plain, swapped = (PRESETS[name].settings for name in ("keras-mlp", "keras-mlp-conv-critic"))
    different = {key for key in plain | swapped if plain.get(key) != swapped.get(key)}
    assert different == {"discriminator"}


def test_the_names_in_the_settings_are_those_of_the_tables():
    for names, table in (
        (GeneratorName, GENERATORS),
        (DiscriminatorName, DISCRIMINATORS),
        (LossName, LOSSES),
    ):
        assert set(names.__args__) == set(table)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source_and_every_setting_can_be_overridden(name):
    assert PRESETS[name].source
    config = resolve({"preset": name, "data": "", "run_dir": "", "lr": 0.125, "batch_size": 6})
    assert (config.lr, config.batch_size) == (0.125, 6)


def test_a_preset_from_a_file_is_what_the_program_printed(tmp_path, capsys):
    assert gantrain(["presets", "keras-conv64", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    values["settings"]["filters"] = 8
    file = tmp_path / "narrow.json"
    file.write_text(json.dumps(values))
    config = resolve({"preset": str(file), "data": "", "run_dir": "", "lr": 0.5})
    original = resolve({"preset": "keras-conv64", "data": "", "run_dir": ""})
    changed = {key for key, value in config if value != getattr(original, key)}
    assert changed == {"preset", "filters", "lr"}
    assert gantrain(["presets", str(file)]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{", "cannot be read", id="torn"),
        pytest.param("[]", 'expected an object with "settings"', id="not-a-preset"),
        pytest.param('{"settings": {"learning": 1}}', "unknown settings: learning", id="setting"),
        pytest.param('{"settings": {"data": "x"}}', "unknown settings: data", id="of-the-run"),
        pytest.param('{"settings": {}, "lr": 1}', "unknown keys: lr", id="key"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_by_name(content, message, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        resolve({"preset": str(file), "data": "", "run_dir": ""})
    assert str(file) in str(refused.value)


def test_a_file_is_read_as_utf_8_whatever_the_locale_is(tmp_path):
    file = tmp_path / "mine.json"
    file.write_bytes('{"summary": "für kleine Bilder", "settings": {}}'.encode())
    shown = subprocess.run(
        [sys.executable, "-m", "gantrain", "presets", str(file), "--json"],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(shown.stdout)["summary"] == "für kleine Bilder"


def test_a_missing_preset_is_refused_with_the_names_there_are(tmp_path):
    with pytest.raises(UsageError, match="faces-rmsprop, or the path of a"):
        resolve({"preset": "wgan", "data": "", "run_dir": ""})
    with pytest.raises(UsageError, match=r"none\.json: cannot be read"):
        resolve({"preset": str(tmp_path / "none.json"), "data": "", "run_dir": ""})


@pytest.mark.parametrize("name", ["{seed}{", "{seed", "{}", "{seed[0]}", "{seed.name}", "{seed:Q}"])
def test_a_run_folder_with_braces_of_its_own_is_told_to_double_them(name):
    with pytest.raises(UsageError, match=r"--run-dir .*; write a brace .* name twice \(.+\)$"):
        resolve({"data": "digits", "run_dir": f"runs/{name}"})
    doubled = name.replace("{", "{{").replace("}", "}}")
    assert str(resolve({"data": "digits", "run_dir": doubled}).run_dir) == name


def test_a_run_folder_can_tell_its_settings():
    pattern = (
        "runs/gan_cap{filters}_batch{batch_size}_filt{kernel_size}_disc{discriminator_updates}"
    )
    config = resolve({"preset": "keras-conv64", "data": "", "run_dir": pattern})
    assert str(config.run_dir) == "runs/gan_cap16_batch32_filt5_disc1"
    with pytest.raises(UsageError, match=r"--run-dir .* not known: 'capacity'$"):
        resolve({"data": "", "run_dir": "runs/{capacity}"})
    assert resolve({"data": "", "run_dir": "runs/{lr}", "lr": 0.5}).run_dir.name == "0.5"


def test_a_run_folder_named_after_an_unset_setting_is_refused_in_one_message():
    with pytest.raises(UsageError) as refused:
        resolve({"data": "", "run_dir": "runs/{batch_size}_{lr}"})
    assert str(refused.value) == (
        "--run-dir runs/{batch_size}_{lr}: {lr} is unset, or settled by the data: give --lr or "
        "leave it out of the name"
    )


CONTRADICTIONS = [
    ({"label_smoothing": 0.1}, "--label-smoothing 0.1: --loss relativistic has no labels"),
    ({"loss": "hinge", "label_smoothing": 0.1}, "--loss hinge has no labels"),
    ({"discriminator_step": "two-steps"}, "--loss relativistic compares reals with fakes"),
    ({"data": "ring8", "precision": "bf16"}, "--precision bf16: points need fp32"),
    ({"data": "ring8", "augment": "cutout"}, "--augment cutout: --data ring8 holds points"),
    (
        {"loss": "bce", "discriminator_step": "two-steps", "gradient_penalty_weight": 10.0},
        "--discriminator-step two-steps: --gradient-penalty-weight",
    ),
    (
        {"loss": "wasserstein", "weight_clip": 0.01, "gradient_penalty_weight": 10.0},
        "--weight-clip and --gradient-penalty-weight",
    ),
    (
        {"loss": "wasserstein", "weight_clip": 0.01, "spectral_norm": True},
        "--weight-clip and --spectral-norm",
    ),
    ({"preset": "dcgan-2015", "r1_weight": 1.0}, "--discriminator dcgan-2015: it has BatchNorm"),
    (
        {"preset": "dcgan-2015", "loss": "relativistic", "r1_weight": None, "r2_weight": None},
        "it has BatchNorm",
    ),
    ({"preset": "dcgan-2015", "generator_updates": 2}, "--reuse-fakes: --generator-updates 2"),
    ({"preset": "dcgan-2015", "fakes_in_inference_mode": True}, "--reuse-fakes: the generator"),
    ({"generator": "sine"}, "--generator sine makes points, --data digits holds images"),
    ({"generator": "dcgan", "discriminator": "points"}, "--discriminator points judges points"),
    ({"data": "ring8", "generator": "dcgan"}, "--data ring8 holds points: for points choose one"),
    ({"data": "ring8", "image_size": 32}, "--image-size: --data ring8 holds points"),
    ({"data": "ring8", "max_data_images": 9}, "--max-data-images: --data ring8 holds points"),
    ({"data": "ring8", "skip_bad_files": True}, "--skip-bad-files: --data ring8 holds points"),
    ({"data": "ring8", "flip": "on"}, "--flip on: --data ring8 holds points"),
    ({"preset": "keras-conv64", "image_size": 28}, "expected a multiple of 16, got 28"),
    ({"rho": 0.5}, "--rho: --optimizer adam has no such setting"),
    ({"preset": "selu-dense", "beta1": 0.5}, "--beta1: --optimizer rmsprop has no such setting"),
    (
        {"preset": "dcgan-2015", "conditional": True},
        "--conditional: --generator dcgan-2015 takes no labels; use dcgan",
    ),
    (
        {"discriminator": "faces", "conditional": True},
        "--conditional: --discriminator faces takes no labels; use dcgan",
    ),
    ({"data": "ring8", "conditional": True}, "--conditional: --data ring8 holds points, which"),
    (
        {"discriminator": "keras-mlp", "generator": "keras-mlp", "discriminator_filters": 4},
        "--discriminator-filters: --discriminator keras-mlp has a fixed size",
    ),
    ({"kernel_size": 3}, "--kernel-size: --generator dcgan and --discriminator dcgan have fixed"),
    ({"ema_half_life_images": 0, "ema_ramp_up": 0.1}, "--ema-ramp-up: --ema-half-life-images 0"),
]


@pytest.mark.parametrize(
    ("settings", "message"),
    [pytest.param(*pair, id=str(number)) for number, pair in enumerate(CONTRADICTIONS)],
)
def test_settings_that_contradict_each_other_are_refused_by_name(settings, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve({"data": "digits", "run_dir": "", **settings})


def test_they_are_refused_before_anything_is_loaded(tmp_path, capsys):
    command = ["train", f"--data={tmp_path}/nothing", f"--run-dir={tmp_path}/run", "--rho=0.5"]
    assert gantrain(command) == 2
    assert capsys.readouterr().err.startswith("gantrain train: --rho: ")
    assert not (tmp_path / "run").exists()


def test_a_conditional_preset_is_described_with_its_classes(tmp_path, capsys):
    file = tmp_path / "conditional.json"
    file.write_text(json.dumps({"settings": {"conditional": True}}))
    plain, conditional = describe_preset("dcgan"), describe_preset(str(file))
    assert conditional["parameters_at"] == {"image_size": 64, "channels": 3, "classes": 10}
    for network in ("generator", "discriminator"):
        added = conditional["parameters"][network]["total"] - plain["parameters"][network]["total"]
        assert added == 10 * 512 * 2 * 2, "a smallest map for each class"
    assert gantrain(["presets", str(file)]) == 0
    assert "at 64x64x3 with 10 classes" in capsys.readouterr().out


def test_a_preset_whose_networks_cannot_make_its_size_is_refused_by_name(tmp_path, capsys):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"settings": {"generator": "faces", "image_size": 20}}))
    assert gantrain(["presets", str(file)]) == 2
    told = "gantrain presets: --generator faces: image_size: expected a multiple of 8, got 20\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("named", [{}, {"preset": "dcgan"}, {"preset": "points"}], ids=str)
@pytest.mark.parametrize("data", POINT_SETS)
def test_the_flagship_for_points_is_another_preset(data, named):
    config = resolve({"data": data, "run_dir": "runs/{preset}", **named})
    assert (config.preset, str(config.run_dir)) == ("points", "runs/points")
    assert (config.generator, config.discriminator) == ("points", "points")
    stated = PRESETS["points"].settings
    assert {key: getattr(config, key) for key in stated} == stated
    assert (config.loss, config.r1_weight) == ("relativistic", None)


@pytest.mark.parametrize(
    ("data", "given", "weights"),
    [
        # 0.04 of the mean variance of a coordinate: 1/2 of the ring, 8 of the grid, and sigma^2.
        pytest.param("ring8", {}, (0.02, 0.02), id="ring8"),
        pytest.param("grid25", {}, (0.32, 0.32), id="grid25"),
        pytest.param("grid25", {"r1_weight": 0.5}, (0.5, 0.32), id="one-given"),
        pytest.param("grid25", {"loss": "bce"}, (0, 0), id="another-loss"),
    ],
)
def test_penalties_on_points_follow_the_spread_of_the_data(data, given, weights):
    config = settle_config(resolve({"data": data, "run_dir": "", **given}), POINT_SETS[data]())
    assert (config.r1_weight, config.r2_weight) == pytest.approx(weights, rel=0.01)


def test_what_the_user_says_wins_over_the_preset_for_points():
    config = resolve({"data": "ring8", "run_dir": "", "lr": 0.125, "generator": "sine"})
    assert (config.lr, config.generator, config.discriminator) == (0.125, "sine", "sine")
    tutorial = resolve({"data": "ring8", "run_dir": "", "preset": "sine"})
    assert (tutorial.preset, tutorial.latent_dim, tutorial.loss) == ("sine", 2, "bce")


def test_images_keep_the_flagship_and_are_refused_by_the_preset_for_points():
    config = resolve({"data": "digits", "run_dir": ""})
    assert (config.preset, config.generator, config.generator_rate) == ("dcgan", "dcgan", 2e-3)
    with pytest.raises(UsageError, match="--generator points makes points, --data digits holds"):
        resolve({"data": "digits", "run_dir": "", "preset": "points"})


def test_a_preset_from_a_file_that_names_no_network_gets_one_for_points(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"settings": {"lr": 0.5}}))
    config = resolve({"data": "ring8", "run_dir": "", "preset": str(file)})
    assert (config.generator, config.discriminator, config.lr) == ("points", "points", 0.5)
    assert TrainConfig(data="", run_dir="").generator is None
