import json
import logging
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits

from gantrain.checkpoint import checkpoint_paths
from gantrain.cli import run as gantrain
from gantrain.data.bad_data import DatasetError
from gantrain.data.datasets import Dataset, load_dataset
from gantrain.errors import RunError, UsageError
from gantrain.evaluation import yardstick as yardsticks
from gantrain.evaluation.distances import Neighbourhoods
from gantrain.evaluation.evaluate import choose_space, doubt_numbers, evaluate, evaluate_sampler
from gantrain.evaluation.examples import RealData, choose_reals, load_real_data
from gantrain.evaluation.feature_spaces import digit_marginals
from gantrain.evaluation.results import (
    FILE,
    ClassFacts,
    Evaluation,
    FeatureFacts,
    GeneratorFacts,
    Measurement,
    ReferenceFacts,
    read_evaluation,
)
from gantrain.evaluation.yardstick import Yardstick
from gantrain.export.artifact import export_run
from gantrain.presets import resolve
from gantrain.sampling import Sampler, open_session, read_artifact
from gantrain.training.loop import train
from tests.gantrain.conftest import SMALL
from tests.gantrain.test_idx_files import idx

DIGITS = load_dataset("digits")


def evaluate_here(path: Path, source: str, cache: Path, **settings: int) -> Evaluation:
    torch.set_num_threads(1)
    return evaluate(path, source, cache=cache, **settings)


@pytest.fixture(scope="module")
def yardstick(cache: Path) -> Yardstick:
    """Digits, 400 of them against 400 others."""
    torch.set_num_threads(1)
    data = load_real_data("digits", picture_sampler(DIGITS.images))
    return Yardstick(data, choose_reals(data, 400), choose_space(data, cache))


def picture_sampler(images: np.ndarray, labels: np.ndarray | None = None, **facts) -> Sampler:
    """A generator that picks images [n, channels, size, size] at random, of the class asked for."""

    def generate(latents: np.ndarray, asked: np.ndarray | None) -> np.ndarray:
        draws = (np.abs(latents[:, 0].astype(np.float64)) * 1e7).astype(np.int64)
        if asked is None or labels is None:
            chosen = draws % len(images)
        else:
            of_class = [np.flatnonzero(labels == label) for label in range(10)]
            chosen = np.array(
                [of_class[a][d % len(of_class[a])] for a, d in zip(asked, draws, strict=True)]
            )
        return images[chosen].transpose(0, 2, 3, 1)

    values = {
        "latent_dim": 2,
        "class_names": () if labels is None else DIGITS.class_names,
        "image_size": images.shape[2],
        "channels": images.shape[1],
        "settings": {"images_seen": 7},
        "data_fingerprint": DIGITS.fingerprint(),
        "weights": "sha256:none",
    }
    return Sampler(generate, **{**values, **facts})


def means(evaluation: Evaluation) -> dict[str, float]:
    return {name: found.mean for name, found in evaluation.measurements.items()}


@pytest.mark.parametrize(
    ("samples", "reals", "precision", "notes"),
    [
        pytest.param(127, 127, 0.6, ["fewer samples (127) than features (128)"], id="few"),
        pytest.param(1000, 60, 0.6, ["fewer reals (60) than features (128)"], id="few-reals"),
        pytest.param(128, 128, 0.69, [], id="enough"),
        pytest.param(128, 128, 1.0, ["Precision above that of real images is no pr"], id="praise"),
    ],
)
def test_numbers_that_say_less_than_they_seem_to_are_noted(
    samples: int, reals: int, precision: float, notes: list[str]
):
    measurements = {
        "frechet_distance": Measurement(mean=5.0),
        "precision": Measurement(mean=precision, floor=0.6),
    }
    found = doubt_numbers(measurements, samples, reals, 128)
    assert len(found) == len(notes)
    assert all(note in told for note, told in zip(notes, found, strict=True))
    assert doubt_numbers({"curve_distance": Measurement(mean=1.0)}, 1, 1, 2) == ()


def test_of_few_noisy_samples_an_evaluation_is_in_doubt(yardstick: Yardstick):
    few = Yardstick(yardstick.data, choose_reals(yardstick.data, 100), yardstick.space)
    found = evaluate_sampler(picture_sampler(DIGITS.images), "few", few, repeats=1)
    assert any("fewer samples (100) than features (128)" in note for note in found.notes)
    few = replace(few.reals, samples=400)
    found = evaluate_sampler(
        picture_sampler(DIGITS.images),
        "few reals",
        Yardstick(yardstick.data, few, yardstick.space),
        repeats=1,
    )
    assert any("fewer reals (100) than features (128)" in note for note in found.notes)


def test_real_images_score_as_the_floor_says_and_are_found_out_as_copies(yardstick: Yardstick):
    found = evaluate_sampler(picture_sampler(DIGITS.images), "real", yardstick, repeats=2)
    values, floors = means(found), {n: m.floor for n, m in found.measurements.items()}
    for name in ("precision", "recall", "density", "coverage"):
        assert values[name] == pytest.approx(floors[name], abs=0.07), name
    assert values["frechet_distance"] < 2 * floors["frechet_distance"]
    assert abs(values["kernel_distance"]) < 0.5
    assert values["class_distance"] < 0.1
    assert found.features.accuracy >= 0.97
    assert found.features.held_out == 359
    assert found.data.trained_on
    assert values["training_distance"] == 0
    assert values["copies"] == 1
    assert floors["copies"] < 0.05
    assert found.measurements["precision"].spread > 0
    assert found.notes == ()


def test_dropped_classes_cost_recall_coverage_and_class_distance(yardstick: Yardstick):
    kept = DIGITS.images[DIGITS.labels < 3]
    found = evaluate_sampler(picture_sampler(kept), "three classes", yardstick, repeats=1)
    values = means(found)
    assert values["precision"] > 0.75
    assert values["recall"] < 0.5
    assert values["coverage"] < 0.4
    assert values["class_distance"] == pytest.approx(0.7, abs=0.05)
    assert found.classes["9"].share < 0.02
    assert found.classes["9"].share_in_data == pytest.approx(0.1, abs=0.03)
    assert found.classes["9"].recognised is None
    assert found.measurements["precision"].spread is None


def test_blurred_and_noisy_images_cost_precision_and_distance(yardstick: Yardstick):
    noise = np.random.default_rng(0).integers(-140, 140, DIGITS.images.shape)
    noisy = (DIGITS.images + noise).clip(0, 255).astype(np.uint8)
    values = means(evaluate_sampler(picture_sampler(noisy), "noisy", yardstick, repeats=1))
    assert values["precision"] < 0.6
    assert values["frechet_distance"] > 5 * yardstick.floors["frechet_distance"]
    assert values["kernel_distance"] > 5 * abs(yardstick.floors["kernel_distance"])
    assert values["copies"] < 0.5


@pytest.mark.parametrize(("shift", "lowest", "highest"), [(0, 0.97, 1), (1, 0, 0.03)])
def test_classes_are_recognised_as_asked_or_not(
    shift: int, lowest: float, highest: float, yardstick: Yardstick
):
    sampler = picture_sampler(DIGITS.images, (DIGITS.labels + shift) % 10)
    found = evaluate_sampler(sampler, "conditional", yardstick, repeats=2)
    recognised = found.measurements["recognised_as_asked"]
    assert lowest <= recognised.mean <= highest
    assert recognised.floor == found.features.accuracy
    assert lowest - 0.05 <= found.classes["4"].recognised <= highest
    assert found.classes["4"].recognised_of_data > 0.9
    assert re.search(r"class +samples +data +as asked +\(real\)", found.describe())


def test_a_run_and_its_artifact_agree_and_the_same_command_says_the_same(
    small_run: Path, cache: Path, tmp_path: Path, capsys
):
    run = shutil.copytree(small_run, tmp_path / "run")
    artifact = export_run(run, tmp_path / "models", "digits")
    flags = ["--data=digits", "--samples=300", "--threads=1", f"--cache-dir={cache}"]
    said = []
    for source in (run, run, artifact):
        assert gantrain(["evaluate", str(source), *flags, "--json"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0] == (run / FILE).read_text()
    one, other = (Evaluation.model_validate_json(text) for text in said[1:])
    assert one.data == other.data
    assert one.data.trained_on
    assert one.generator.images_seen == other.generator.images_seen == 1024
    assert means(one).keys() == means(other).keys()
    for name, value in means(one).items():
        assert value == pytest.approx(means(other)[name], rel=0.01, abs=0.01), name
        assert one.measurements[name].floor == other.measurements[name].floor
    assert gantrain(["evaluate", str(artifact), *flags]) == 0
    text = capsys.readouterr().out
    assert "300" in text
    assert f"{100 * one.features.accuracy:.2f} % right on 359 held-out images" in text
    assert "frechet distance" in text
    assert "FID" not in text
    assert "inception" not in text


def test_an_evaluation_travels_with_the_weights_it_is_of_and_no_others(
    small_run: Path, cache: Path, tmp_path: Path, caplog
):
    run = shutil.copytree(small_run, tmp_path / "run")
    found = evaluate_here(run, "digits", cache, samples=100)
    (run / FILE).write_text(found.to_json())
    assert carried(export_run(run, tmp_path, "digits")) == found.numbers()
    assert found.numbers()["samples"] == 100
    assert found.numbers()["frechet_distance_floor"] > 0
    train(resolve({**SMALL, "run_dir": run, "total_images": 1040}))
    caplog.set_level(logging.WARNING)
    assert carried(export_run(run, tmp_path, "digits")) == {}
    assert "after 1024 images, exported is the generator after 1040" in caplog.text


def test_each_checkpoint_keeps_its_evaluation_and_takes_it_along(
    small_run: Path, cache: Path, tmp_path: Path, capsys, caplog
):
    run = shutil.copytree(small_run, tmp_path / "run")
    newest, earlier = checkpoint_paths(run / "checkpoints")
    flags = ["--data=digits", "--samples=60", "--threads=1", f"--cache-dir={cache}", "--json"]
    said = {}
    for source in (earlier, newest, run):
        assert gantrain(["evaluate", str(source), *flags]) == 0
        said[source] = Evaluation.model_validate_json(capsys.readouterr().out)
    assert means(said[newest]) == means(said[run]) != means(said[earlier])
    assert read_evaluation(earlier) == said[earlier]
    assert read_evaluation(run) == said[run]
    flags = ["--repository", str(tmp_path / "models"), "--name", "digits"]
    for number, source in enumerate((earlier, newest, run), 1):
        assert gantrain(["export", str(source), *flags]) == 0
        artifact = tmp_path / "models" / "digits" / str(number) / "model.onnx"
        told = capsys.readouterr()
        assert told.out == f"{artifact}\n"
        assert "no evaluation" not in told.err
        assert carried(artifact) == said[source].numbers()
        facts = read_artifact(open_session(artifact.read_bytes()), artifact)
        assert facts["training"]["images_seen"] == said[source].generator.images_seen
    # The newest one's own is enough, and one of other weights is none.
    (run / FILE).unlink()
    assert carried(export_run(run, tmp_path / "more", "digits")) == said[newest].numbers()
    shutil.copy(earlier.with_suffix(".json"), newest.with_suffix(".json"))
    caplog.set_level(logging.WARNING)
    assert carried(export_run(run, tmp_path / "more", "digits")) == {}
    assert "carries no evaluation" in caplog.text


def test_an_evaluation_on_other_data_does_not_travel(
    small_run: Path, digit_folder: Path, cache: Path, tmp_path: Path, caplog
):
    run = shutil.copytree(small_run, tmp_path / "run")
    found = evaluate_here(run, str(digit_folder), cache, samples=100, resize=True)
    (run / FILE).write_text(found.to_json())
    caplog.set_level(logging.WARNING)
    assert carried(export_run(run, tmp_path, "digits")) == {}
    assert f"one on {digit_folder}, which it was not trained on; evaluate on digits" in caplog.text


def carried(artifact: Path) -> dict[str, float]:
    properties = {entry.key: entry.value for entry in onnx.load(artifact).metadata_props}
    return json.loads(properties["gan"])["evaluation"]


def test_a_torn_evaluation_stops_the_export_and_is_named(small_run: Path, tmp_path: Path):
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / FILE).write_text("{")
    with pytest.raises(RunError, match=f"{FILE} cannot be used: expected what `gantrain evaluate`"):
        export_run(run, tmp_path, "digits")


def test_without_labels_the_features_are_a_random_networks_and_that_is_said(
    class_folders: Path, tmp_path: Path, cache: Path
):
    flat = tmp_path / "pictures"
    flat.mkdir()
    for index, path in enumerate(sorted(class_folders.rglob("*.png"))):
        shutil.copy(path, flat / f"{index}.png")
    data = load_real_data(str(flat), picture_sampler(DIGITS.images), resize=True)
    reals, space = choose_reals(data, None), choose_space(data, cache)
    yardstick = Yardstick(data, reals, space)
    assert yardstick.count == 24
    found = evaluate_sampler(picture_sampler(data.train.images), "shades", yardstick, repeats=1)
    assert "random network" in found.features.kind
    assert found.features.accuracy is None
    assert found.classes == {}
    assert any("fixed random network" in note for note in found.notes)
    assert not found.data.trained_on
    assert "copies" not in found.measurements
    other = evaluate_sampler(picture_sampler(DIGITS.images), "digits", yardstick, repeats=1)
    assert means(other)["frechet_distance"] > 2 * means(found)["frechet_distance"]


def test_a_conditional_run_is_asked_for_the_datas_classes(
    conditional_run: Path, class_folders: Path, cache: Path
):
    found = evaluate_here(conditional_run, str(class_folders), cache, repeats=2)
    assert found.samples == 24
    assert found.data.trained_on
    assert found.classes.keys() == {"cat", "dog", "owl"}
    assert found.classes["cat"].share_in_data == pytest.approx(0.5, abs=0.2)
    assert found.measurements["recognised_as_asked"].mean > 0.5


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param("ring8", {"modes": 8, "high_quality": 0.989, "reverse_kl": 0.0}, id="ring8"),
        pytest.param("sine", {"curve_distance": 0.0}, id="sine"),
    ],
)
def test_points_are_measured_on_the_plane(data: str, wanted: dict, tmp_path: Path, cache: Path):
    run = tmp_path / "run"
    settings = {"data": data, "batch_size": 32, "threads": 1, "total_images": 640}
    train(resolve({**settings, "run_dir": run, "tensorboard": False}))
    found = evaluate_here(run, data, cache)
    assert found.samples == (2500 if data == "ring8" else 512)
    for name, value in wanted.items():
        assert found.measurements[name].floor == pytest.approx(value, abs=0.01), name
    assert found.measurements["coverage"].floor > 0.9
    assert means(found)["coverage"] < 0.9, "after 20 steps"
    assert "frechet_distance" not in found.measurements
    assert found.data.trained_on
    with pytest.raises(RunError, match="--data digits holds images, but the generator makes point"):
        evaluate_here(run, "digits", cache)
    with pytest.raises(UsageError, match="--inception: the generator makes points"):
        evaluate(run, data, inception="download")


def test_of_more_points_than_are_compared_as_many_are_held_against_as_many(
    monkeypatch: pytest.MonkeyPatch,
):
    """Four times as many would cover nearly all, and reach a quarter as far."""
    monkeypatch.setattr(yardsticks, "_NEIGHBOURS", 500)
    data = load_real_data("grid25", picture_sampler(DIGITS.images, image_size=None))
    reals = choose_reals(data, 2000)
    floors = Yardstick(data, reals, choose_space(data, None)).floors
    reference, others = (torch.from_numpy(some[:500]) for some in (reals.reference, reals.others))
    expected = Neighbourhoods(reference).measure(others)
    assert {name: floors[name] for name in asdict(expected)} == asdict(expected)
    assert floors["modes"] == 25


@pytest.fixture(scope="module")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as MNIST-format files of 8x8 pixels, the last 300 as the test split."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for prefix, part in (("train", slice(0, -300)), ("t10k", slice(-300, None))):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images[part]))
        labels = digits.target[part].astype(np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def test_a_test_split_is_what_is_held_out(digit_folder: Path, cache: Path):
    data = load_real_data(str(digit_folder), picture_sampler(DIGITS.images), resize=True)
    reals = choose_reals(data, None)
    assert len(reals.reference) == len(reals.others) == 300
    assert "test" in reals.described
    rows = {image.tobytes() for image in data.held_out.images}
    assert all(image.tobytes() in rows for image in reals.others)
    assert not any(image.tobytes() in rows for image in reals.reference)
    few = choose_reals(data, 100).others  # the first of a split may be of another kind
    first = {image.tobytes() for image in data.held_out.images[:100]}
    assert sum(image.tobytes() in first for image in few) < 60
    space = choose_space(data, cache)
    assert space.held_out == 300
    assert space.accuracy > 0.93
    many = choose_reals(data, 700)
    assert "others of the data" in many.described
    taken = {image.tobytes() for image in many.reference}
    assert not any(image.tobytes() in taken for image in many.others)
    with pytest.raises(UsageError, match="--samples: expected at most 748"):
        choose_reals(data, 749)


def rows_of(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@pytest.mark.parametrize(
    ("reference", "samples", "parts", "floor", "described"),
    [
        pytest.param(
            "train",
            2000,
            {"train": 1497},
            0,
            "all 1,497 training images; no floor: it takes 2,000 others, and there are 300",
            id="train",
        ),
        pytest.param(
            "train",
            200,
            {"train": 1497},
            200,
            "all 1,497 training images; the floor: 200 test ones",
            id="train-few",
        ),
        pytest.param(
            "test",
            1000,
            {"test": 300},
            1000,
            "all 300 test images; the floor: 1,000 training ones",
            id="test",
        ),
        pytest.param(
            "all",
            20,
            {"train": 1497, "test": 300},
            0,
            "all 1,497 training and 300 test images; no floor: it takes 20 others, and there are 0",
            id="all",
        ),
    ],
)
def test_a_whole_split_is_the_reference_for_any_number_of_samples(
    reference: str, samples: int, parts: dict, floor: int, described: str, digit_folder: Path
):
    data = load_real_data(str(digit_folder), picture_sampler(DIGITS.images), resize=True)
    reals = choose_reals(data, samples, reference)
    assert (reals.samples, reals.parts, reals.described) == (samples, parts, described)
    splits = {"train": data.train.images, "test": data.held_out.images}
    assert len(reals.reference) == sum(parts.values())
    assert rows_of(reals.reference) == set().union(*(rows_of(splits[name]) for name in parts))
    assert (0 if reals.others is None else len(reals.others)) == floor
    first, count = splits[next(iter(parts))], len(reals.reference)
    assert not np.array_equal(reals.reference[: count // 2], first[: count // 2]), "shuffled"


def test_more_samples_than_the_test_split_has_are_measured_against_it_without_a_floor(
    digit_folder: Path, cache: Path
):
    data = load_real_data(str(digit_folder), picture_sampler(DIGITS.images), resize=True)
    reals, space = choose_reals(data, 1600, "test"), choose_space(data, cache)
    yardstick = Yardstick(data, reals, space)
    sampler = picture_sampler(DIGITS.images, DIGITS.labels)
    found = evaluate_sampler(sampler, "real", yardstick, repeats=1)
    assert found.samples == 1600
    assert found.numbers()["reference_test_images"] == 300
    assert found.measurements["frechet_distance"].floor is None
    assert "(real" not in found.rows()["frechet distance"]
    assert "no floor: it takes 1,600 others" in found.describe()
    assert found.classes["4"].share_in_data == pytest.approx(0.1, abs=0.03)
    # Of 1,600 samples as many as of the 300 reals are compared: all of them would cover more.
    fakes = yardstick.look_at(iter([DIGITS.images]), len(DIGITS.images), "digits").features
    tests = space.look(data.held_out.images[np.random.default_rng(0).permutation(300)]).features
    expected = Neighbourhoods(tests).measure(fakes[:300])
    assert yardstick._near(fakes) == asdict(expected)


def test_few_samples_are_compared_with_as_few_of_a_whole_split(digit_folder: Path, cache: Path):
    data = load_real_data(str(digit_folder), picture_sampler(DIGITS.images), resize=True)
    yardstick = Yardstick(data, choose_reals(data, 100, "train"), choose_space(data, cache))
    assert yardstick.floors["coverage"] > 0.5, "100 images cannot cover 1,497"


def test_a_split_that_is_not_there_is_refused():
    data = load_real_data("digits", picture_sampler(DIGITS.images))
    with pytest.raises(UsageError, match="--reference test: digits has no test split; use --ref"):
        choose_reals(data, None, "test")


def test_off_a_terminal_each_repeat_is_told(yardstick: Yardstick, caplog, monkeypatch):
    monkeypatch.setattr("gantrain.progress._LINE_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    evaluate_sampler(picture_sampler(DIGITS.images), "real", yardstick, repeats=2)
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(":")[0] for line in told] == [
        *("samples", "repeat 1 of 2", "samples", "repeat 2 of 2")
    ]
    assert told[0].startswith("samples: 400 of 400 in ")
    assert re.fullmatch(r"repeat 2 of 2: 400 samples drawn in \d+ s, measured in \d+ s", told[-1])


def test_what_is_not_known_of_a_class_is_a_dash():
    known = ClassFacts(share=0.5, share_in_data=0.25, recognised=0.0, recognised_of_data=0.125)
    unknown = ClassFacts(share=0.5, share_in_data=0.75)
    found = Evaluation(
        generator=GeneratorFacts(source="run", images_seen=1, weights=""),
        data=ReferenceFacts(source="data", fingerprint="", trained_on=True, reals="real ones"),
        features=FeatureFacts(kind="some"),
        samples=2,
        repeats=1,
        measurements={"recall": Measurement(mean=1)},
        classes={"cat": known, "dog": unknown},
    )
    cat, dog = found.describe().splitlines()[-2:]
    assert cat.split() == ["cat", "50.0", "%", "25.0", "%", "0.0", "%", "12.5", "%"]
    assert dog.split() == ["dog", "50.0", "%", "75.0", "%", "-", "-"]
    assert len(cat) == len(dog)


@pytest.mark.parametrize(("count", "expected"), [(1000, 300), (300, 300), (200, 200), (40, 40)])
def test_a_test_split_may_be_larger_than_what_is_trained_on(
    digit_folder: Path, count: int, expected: int
):
    train = load_dataset(str(digit_folder), limit=count)
    held_out = load_dataset(str(digit_folder), split="test")
    data = RealData(str(digit_folder), train, held_out, trained_on=True)
    reals = choose_reals(data, None)
    assert len(reals.reference) == len(reals.others) == expected
    assert "test" in reals.described


def test_stacked_digits_are_counted_in_modes(digit_folder: Path, cache: Path):
    source = f"stacked-mnist:{digit_folder}"
    stacks, held_out = load_dataset(source), load_dataset(source, split="test", limit=1000)
    sampler = picture_sampler(stacks.images)
    data = RealData(source, stacks, held_out, trained_on=False)
    yardstick = Yardstick(data, choose_reals(data, 1000), choose_space(data, cache))
    found = evaluate_sampler(sampler, "stacks", yardstick, repeats=1)
    perfect = 1000 * (1 - np.exp(-1))  # modes that 1,000 draws find
    assert means(found)["modes"] == pytest.approx(perfect, abs=40)
    assert found.measurements["modes"].floor == pytest.approx(perfect, abs=60)
    expected = np.log(1000) - entropy_of_draws(1000)
    assert means(found)["reverse_kl"] == pytest.approx(expected, abs=0.06)
    assert "single digits" in found.features.kind
    recognised = yardstick.space.look(held_out.images).labels
    assert (recognised == held_out.labels).mean() > 0.93**3 - 0.05
    assert found.features.accuracy > 0.93
    alike = picture_sampler(stacks.images[:1])
    collapsed = means(evaluate_sampler(alike, "collapsed", yardstick, repeats=1))
    assert collapsed["modes"] == 1
    assert collapsed["reverse_kl"] == pytest.approx(np.log(1000), abs=0.5)


def test_a_stack_is_as_likely_as_its_digits_together():
    marginals = digit_marginals(np.array([0, 0, 1, 7]))
    assert marginals.sum() == pytest.approx(1)
    assert marginals[0] == pytest.approx(1 / 8)
    assert marginals[7] == marginals[700] == pytest.approx(1 / 2 * 1 / 2 * 1 / 4)
    assert marginals[2] == 0


@pytest.mark.parametrize(("flip", "copied"), [("on", True), ("off", False)])
def test_a_mirrored_copy_is_a_copy_where_training_mirrored(
    flip: str, copied: bool, yardstick: Yardstick
):
    mirrored = picture_sampler(DIGITS.images[:, :, :, ::-1], settings={"flip": flip})
    found = evaluate_sampler(mirrored, "mirrored", yardstick, repeats=1)
    assert (means(found)["copies"] == 1) is copied


def entropy_of_draws(count: int) -> float:
    """Entropy, in nats, of the histogram of so many draws from 1000 modes, on average."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(20):
        shares = np.bincount(random.integers(0, 1000, count)) / count
        found.append(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("facts", "source", "message"),
    [
        pytest.param(
            {"data_fingerprint": "", "image_size": 12},
            "digits",
            "--data digits has images of 8x8 grey, the generator makes 12x12 grey",
            id="size",
        ),
        pytest.param(
            {"data_fingerprint": "", "channels": 3},
            "digits",
            "8x8 grey, the generator makes 8x8 RGB .* add --resize",
            id="channels",
        ),
        pytest.param({}, "ring8", "ring8 holds points, but the generator makes images", id="kind"),
    ],
)
def test_data_unlike_the_generators_are_refused(facts: dict, source: str, message: str):
    with pytest.raises(RunError, match=message):
        load_real_data(source, picture_sampler(DIGITS.images, **facts))


@pytest.mark.parametrize("limit", [None, 2])
def test_other_data_are_decoded_twice_at_most_without_their_bad_files(
    limit: int | None, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = str(shutil.copytree(class_folders, tmp_path / "other"))
    (tmp_path / "other" / "cat" / "bad.png").write_bytes(b"no picture")
    loads = []

    def load(*given: Any, **asked: Any) -> Dataset:
        loads.append(asked)
        return load_dataset(*given, **asked)

    monkeypatch.setattr("gantrain.evaluation.examples.load_dataset", load)
    settings = {"skip_bad_files": True, "max_data_images": limit}
    data = load_real_data(source, picture_sampler(DIGITS.images, settings=settings))
    assert not data.trained_on
    assert len(data.train.examples) == 48
    assert len(loads) == 2


def test_bad_files_are_left_out_of_an_evaluation_when_asked_to(
    class_folders: Path, small_run: Path, cache: Path, tmp_path: Path, capsys
):
    run = shutil.copytree(small_run, tmp_path / "run")
    source = shutil.copytree(class_folders, tmp_path / "other")
    (source / "cat" / "bad.png").write_bytes(b"no picture")
    command = ["evaluate", str(run), f"--data={source}", f"--cache-dir={cache}"]
    command += ["--samples=24", "--repeats=1", "--threads=1", "--json"]
    assert gantrain(command) == 1
    assert "or leave them out with --skip-bad-files" in capsys.readouterr().err
    assert gantrain([*command, "--skip-bad-files"]) == 0
    told = capsys.readouterr()
    assert "left out 1 of 49 files: cat/bad.png: not an image" in told.err
    assert json.loads(told.out)["data"]["reals"].startswith("24 images")


def test_bad_files_of_points_are_not_to_be_left_out():
    points = picture_sampler(DIGITS.images, image_size=None)
    with pytest.raises(DatasetError, match=r"^--skip-bad-files: ring8 holds points, not images"):
        load_real_data("ring8", points, skip_bad_files=True)


def test_too_few_images_are_refused():
    few = RealData("few", load_dataset("digits", limit=30), None, trained_on=False)
    with pytest.raises(RunError, match="too few to measure anything: expected at least 40, got 30"):
        choose_reals(few, None)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        pytest.param(["--data=nowhere"], 1, "'nowhere': no such data set", id="source"),
        pytest.param(["--data=digits", "--samples=899"], 2, "expected at most 898", id="samples"),
        pytest.param(["--data=digits", "--samples=3"], 2, "--samples: expected a number", id="few"),
        pytest.param(["--samples=30"], 2, "--data is required", id="no data"),
        pytest.param(
            ["--data=digits", "--inception=none.pth"], 1, "none.pth: no such file", id="inception"
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    flags: list[str], code: int, message: str, small_run: Path, capsys
):
    assert gantrain(["evaluate", str(small_run), *flags]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gantrain evaluate: ")
    assert message in line


def test_other_classes_than_the_datas_are_refused(conditional_run: Path, cache: Path):
    message = r"--data digits has the classes 0, 1, 2, 3, 4, \.\.\., the generator makes cat, dog"
    with pytest.raises(RunError, match=message):
        evaluate_here(conditional_run, "digits", cache)


def test_numbers_that_cannot_be_kept_are_shown(
    small_run: Path, cache: Path, tmp_path: Path, capsys
):
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / FILE).mkdir()
    flags = ["--data", "digits", "--samples", "50", "--cache-dir", str(cache)]
    assert gantrain(["evaluate", str(run), *flags]) == 1
    told = capsys.readouterr()
    assert "frechet distance" in told.out
    assert f"{run / FILE} could not be written" in told.err


def test_a_run_that_was_never_evaluated_has_no_evaluation(tmp_path: Path):
    assert read_evaluation(tmp_path) is None


def test_points_that_are_no_numbers_are_an_error_of_one_line(cache: Path):
    facts = {"image_size": None, "channels": None}

    def generate(latents: np.ndarray, _: object) -> np.ndarray:
        return np.full((len(latents), 2), np.nan, np.float32)

    sampler = replace(picture_sampler(DIGITS.images, **facts), generate=generate)
    data = load_real_data("sine", sampler)
    yardstick = Yardstick(data, choose_reals(data, None), choose_space(data, cache))
    with pytest.raises(
        RunError, match=r"diverged: its samples cannot be measured: .* got 512 that"
    ):
        evaluate_sampler(sampler, "diverged", yardstick, repeats=1)
