import io
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import termios
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence

from gantrain.cli import run
from gantrain.cli_options import _SECTIONS, Evaluate, Export, Sample
from gantrain.config import TrainConfig
from tests.gantrain.conftest import nearest_class, tile_shades


def gantrain(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_help_is_quick_for_it_loads_no_torch():
    code = (
        "import sys; from gantrain.cli import run\n"
        "try: run(['train', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_help_begins_with_what_must_be_given_and_goes_on_by_subject(capsys):
    with pytest.raises(SystemExit):
        gantrain("train", "--help")
    printed = capsys.readouterr().out
    assert printed.startswith("usage: gantrain train --data TEXT --run-dir PATH [options]\n")
    titles = re.findall(r"^(\w.*):\n  -", printed, re.MULTILINE)
    assert titles == ["options", *_SECTIONS["gantrain train"].values()]
    assert "default: None" not in printed
    assert "--image-size N " in printed


@pytest.mark.parametrize("command", [Sample, Evaluate, Export], ids=lambda kind: kind.__name__)
def test_usage_names_all_that_must_be_given(command, capsys):
    name = command.__name__.lower()
    with pytest.raises(SystemExit):
        gantrain(name, "--help")
    usage, *_ = capsys.readouterr().out.splitlines()
    for setting, field in command.model_fields.items():
        assert (re.search(rf"\b{setting}\b", usage, re.IGNORECASE) is not None) is (
            field.is_required()
        )


def test_without_a_command_help_is_shown_and_the_usage_is_wrong(capsys):
    assert gantrain() == 2
    assert "train" in capsys.readouterr().err


def test_without_a_command_of_its_own_data_says_which_there_is(capsys):
    assert gantrain("data") == 2
    assert capsys.readouterr().err == "gantrain data: expected `gantrain data check SOURCE`\n"


def test_whoever_reads_may_have_enough():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gantrain", "presets"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def run_without(package: str, arguments: list[str], folder: Path) -> "subprocess.CompletedProcess":
    """Run the program where a package is missing: a file that says so takes its place."""
    error = f"ModuleNotFoundError({f'No module named {package!r}'!r}, name={package!r})"
    (folder / f"{package}.py").write_text(f"raise {error}")
    return run_beside(folder, arguments)


def run_beside(folder: Path, arguments: list[str]) -> "subprocess.CompletedProcess":
    """Run the program with the modules of a folder before all others."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "gantrain", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("package", "command"),
    [
        pytest.param("tqdm", "presets", id="tqdm"),
        pytest.param("torch", "train --data=digits --run-dir=run", id="torch"),
        pytest.param("sklearn", "data check digits", id="sklearn"),
    ],
)
def test_without_the_extra_train_one_line_says_what_to_install(package, command, tmp_path: Path):
    done = run_without(package, command.split(), tmp_path)
    name = "data check" if command.startswith("data") else command.split()[0]
    assert done.stderr == (
        f"gantrain {name}: {package} is not installed: "
        "in a checkout, pip install '.[train,cpu]' or '.[train,gpu]'\n"
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_a_package_that_is_too_old_is_not_called_missing(tmp_path: Path):
    package = tmp_path / "tqdm"
    package.mkdir()
    (package / "__init__.py").write_text("import tqdm.news")
    done = run_beside(tmp_path, ["presets"])
    told = "the installed version of tqdm has no tqdm.news, upgrade it: in a checkout"
    assert done.stderr.startswith(f"gantrain presets: {told}")
    assert done.returncode == 1


def test_a_missing_module_that_no_extra_brings_is_not_hidden(tmp_path: Path):
    done = run_without("zipfile", ["data", "check", "digits"], tmp_path)
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'zipfile'\n")


def test_the_version_is_that_of_the_distribution(capsys):
    assert gantrain("--version") == 0
    assert capsys.readouterr().out.startswith("gantrain 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--data=x"], "gantrain train: --run-dir is required", id="missing"),
        pytest.param(
            ["--run-dir=x", "--lr=-1"], "--lr: expected a number greater than 0, got", id="range"
        ),
        pytest.param(["--run-dir=x", "--lr=no"], ", got 'no'", id="type"),
        *(
            pytest.param(
                ["--run-dir=x", f"--total-images={text}"],
                f"--total-images: expected a whole number, such as 64 or 1e6, got {text!r}",
                id=f"whole-number-{text}",
            )
            for text in ("1.5", "1e-3", "1M", "nan", "inf", "1e999999999", "")
        ),
        pytest.param(
            ["--run-dir=x", "--batch-size=1e5"],
            "--batch-size: expected a number less than or equal to 65536, got 100000",
            id="range-of-whole-numbers",
        ),
        pytest.param(
            ["--run-dir=x", "--r1-weight=inf"], "--r1-weight: expected a finite number", id="inf"
        ),
        *(
            pytest.param(
                ["--run-dir=x", f"--image-size={size}"],
                f"--image-size: expected a multiple of 4 from 8 to 128, got {size}; try {nearest}",
                id=f"size-{size}",
            )
            for size, nearest in ((30, 28), (130, 128), (132, 128), (4, 8), (-3, 8))
        ),
        pytest.param(
            ["--run-dir=x", "--preset=none"],
            "--preset: expected one of dcgan, dcgan-2015",
            id="preset",
        ),
    ],
)
def test_wrong_settings_are_named_before_anything_is_loaded(arguments, message: str, capsys):
    assert gantrain("train", "--data=digits", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("gantrain train: ")
    assert not Path("x").exists()


@pytest.mark.parametrize("text", ["2500", "2_500", "2.5e3", "25E+2", "2500.0"])
def test_whole_numbers_are_taken_as_people_write_them(text: str, capsys):
    flags = [f"--total-images={text}", f"--threads={text[0]}", "--seed=1e18", "--dry-run"]
    assert gantrain("train", "--data=digits", "--run-dir=x", *flags) == 0
    settings = json.loads(capsys.readouterr().out)
    assert (settings["total_images"], settings["threads"]) == (2500, 2)
    assert settings["seed"] == 10**18, "no detour over floating point"


def test_whole_numbers_of_other_commands_too(capsys):
    assert gantrain("data", "check", "digits", "--image-size=1.6e1") == 0
    assert "loaded as  16x16 grey" in capsys.readouterr().out
    assert gantrain("evaluate", "x", "--data=digits", "--samples=1e1") == 2
    assert "--samples: expected a number greater than or equal to 20" in capsys.readouterr().err
    assert gantrain("data", "check", "digits", "--image-size=big") == 2
    assert capsys.readouterr().err == (
        "gantrain data check: --image-size: expected a whole number, such as 64 or 1e6, got 'big'\n"
    )


def test_a_run_in_grey_or_colour_can_be_asked_for(tmp_path: Path):
    run_dir = tmp_path / "run"
    flags = [f"--run-dir={run_dir}", "--filters=2", "--batch-size=8", "--threads=1"]
    flags += ["--image-size=8", "--channels=3", "--total-images=8", "--no-tensorboard"]
    assert gantrain("train", "--data=digits", *flags) == 0
    assert '"channels": 3' in (run_dir / "config.json").read_text()


def test_data_can_be_checked_for_grey_or_colour():
    assert gantrain("data", "check", "digits", "--image-size=8", "--channels=3") == 0


@pytest.mark.parametrize(
    ("arguments", "usage", "told"),
    [
        pytest.param(
            ["train", "--totl-images", "32"],
            "gantrain train --data TEXT --run-dir PATH [options]",
            "gantrain train: unrecognized arguments: --totl-images 32; is --total-images meant?",
            id="flag",
        ),
        pytest.param(
            ["data", "check", "digits", "--image-siz=8"],
            "gantrain data check [-h] [--image-size N] [--channels {1,3}] SOURCE",
            "gantrain data check: unrecognized arguments: --image-siz=8; is --image-size meant?",
            id="flag-of-a-command-of-a-command",
        ),
        pytest.param(
            ["train", "--data=digits", "--run-dir=x", "--zzz=1"],
            "gantrain train --data TEXT --run-dir PATH [options]",
            "gantrain train: unrecognized arguments: --zzz=1",
            id="nothing-near",
        ),
        pytest.param(
            ["train", "digits", "--data=digits", "--run-dir=x"],
            "gantrain train --data TEXT --run-dir PATH [options]",
            "gantrain train: unrecognized arguments: digits",
            id="word",
        ),
        pytest.param(
            ["data", "chek", "digits"],
            "gantrain data [-h] {check} ...",
            "is check meant?",
            id="command",
        ),
    ],
)
def test_of_a_mistyped_line_the_usage_and_the_nearest_word_are_shown(
    arguments, usage: str, told: str, capsys
):
    assert gantrain(*arguments) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == f"usage: {usage}"
    assert last.endswith(told)


def test_of_a_mistyped_preset_the_nearest_is_named(capsys):
    assert gantrain("train", "--data=digits", "--run-dir=x", "--preset=dcgn") == 2
    assert capsys.readouterr().err.endswith("got 'dcgn'; is dcgan meant?\n")


def test_a_check_tells_of_fewer_images_than_training_takes(tmp_path: Path, capsys):
    told = "too few    for the usual batch of 64: `gantrain train` needs --batch-size 20 or less\n"
    for count in (20, 64):
        for index in range(count):
            Image.new("L", (8, 8), index).save(tmp_path / f"{index}.png")
        assert gantrain("data", "check", tmp_path) == 0
        assert capsys.readouterr().out.endswith(told) == (count == 20)


def test_a_run_folder_without_a_name_is_bad_usage(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gantrain("train", "--data=digits", "--run-dir=", "--total-images=1") == 2
    assert "--run-dir: expected a folder, got an empty name" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_repository_without_a_name_is_bad_usage(tmp_path, small_run: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gantrain("export", small_run.resolve(), "--repository=", "--name=x") == 2
    assert "--repository: expected a folder, got an empty name" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_dry_run_prints_the_resolved_settings_and_stops(tmp_path: Path, capsys):
    run_dir = tmp_path / "run"
    assert gantrain("train", "--data=digits", f"--run-dir={run_dir}", "--lr=0.5", "--dry-run") == 0
    settings = json.loads(capsys.readouterr().out)
    assert settings["lr"] == 0.5
    assert settings["preset"] == "dcgan"
    assert settings.keys() == TrainConfig.model_fields.keys()
    assert not run_dir.exists()


def test_presets_are_listed_and_shown_whole(capsys):
    assert gantrain("presets") == 0
    assert "dcgan" in capsys.readouterr().out
    assert gantrain("presets", "dcgan", "--json") == 0
    preset = json.loads(capsys.readouterr().out)
    for network in ("generator", "discriminator"):
        counts = preset["parameters"][network]
        assert counts["total"] >= counts["trainable"] > 100_000
    assert gantrain("presets", "dcgan") == 0
    assert "--batch-size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param("nope", "NAME: expected one of dcgan, ", id="name"),
        pytest.param("nope.json", "NAME nope.json: cannot be read: ", id="file"),
    ],
)
def test_a_preset_to_show_that_is_not_there_is_told_by_the_argument(name: str, told: str, capsys):
    assert gantrain("presets", name) == 2
    assert capsys.readouterr().err.startswith(f"gantrain presets: {told}")


def test_sampling_draws_the_seeds_asked_for(small_run: Path, tmp_path: Path, capsys):
    grid, part = tmp_path / "new" / "grid.png", tmp_path / "part.png"
    assert gantrain("sample", small_run, "--seeds=0-8", f"--out={grid}") == 0
    assert capsys.readouterr().out.strip() == str(grid)
    assert gantrain("sample", small_run, "--seeds=4", f"--out={part}") == 0
    with Image.open(grid) as image, Image.open(part) as single:
        assert image.width == image.height >= 500
        assert single.mode == image.mode == "L"


def test_interpolation_is_an_animation_of_every_frame(small_run: Path, tmp_path: Path):
    out = tmp_path / "walk.gif"
    flags = ["--seeds=0,1,2", "--interpolate", "--frames-per-segment=4", f"--out={out}"]
    assert gantrain("sample", small_run, *flags) == 0
    with Image.open(out) as image:
        assert image.n_frames == 9
        assert image.info["loop"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(
            ["--seeds=0", "--out=x.jpg"], "--out: expected a file ending in .png", id="kind"
        ),
        pytest.param(
            ["--seeds=0", "--out=x.gif", "--interpolate"], "--seeds: --interpolate needs", id="one"
        ),
        pytest.param(["--seeds=5-3", "--out=x.png"], "smaller end of a range first", id="range"),
    ],
)
def test_samples_that_make_no_sense_are_bad_usage(flags, message: str, small_run: Path, capsys):
    assert gantrain("sample", small_run, *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("out", ["text.txt/grid.png", "text.txt/new/grid.png"])
def test_a_file_in_place_of_the_folder_to_write_in_is_named(
    out: str, small_run: Path, tmp_path: Path, capsys
):
    (tmp_path / "text.txt").write_text("words")
    assert gantrain("sample", small_run, "--seeds=0", f"--out={tmp_path / out}") == 1
    expected = f"--out: expected a folder above the picture, {tmp_path / 'text.txt'} is a file"
    assert capsys.readouterr().err == f"gantrain sample: {expected}\n"


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(small_run: Path, capsys):
    assert gantrain("sample", small_run, "--seeds=0", "--out=/proc/new/grid.png") == 1
    told = capsys.readouterr().err
    assert told.startswith("gantrain sample: /proc/new could not be written: No such file")
    assert "mend the folder and give the same command again" in told


@pytest.mark.parametrize("command", ["report", "export"])
def test_an_artifact_where_a_run_is_expected_is_told(command: str, tmp_path: Path, capsys):
    artifact = tmp_path / "model.onnx"
    artifact.write_bytes(b"no run")
    flags = [f"--repository={tmp_path / 'models'}", "--name=x"] if command == "export" else []
    assert gantrain(command, artifact, *flags) == 1
    assert capsys.readouterr().err == (
        f"gantrain {command}: {artifact} holds no run: it is no folder; give the one that "
        "--run-dir named\n"
    )


def test_a_lack_of_memory_is_told_in_one_line(tmp_path: Path, capsys):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for index in range(20_000):  # a gigabyte, at 128x128 in colour
            archive.writestr(f"{index}.png", b"")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, limits[1]))
    flags = [f"--data={tmp_path / 'many.zip'}", f"--run-dir={tmp_path / 'run'}", "--image-size=128"]
    try:
        assert gantrain("train", *flags, "--threads=1") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    told = capsys.readouterr().err
    assert told.startswith("gantrain train: out of memory (Unable to allocate ")
    assert told.endswith(": ask for fewer or smaller images at once, or use a machine with more\n")
    assert told.count("\n") == 1


TRAINS_WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import gantrain.training.loop
from gantrain.cli import run
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
sys.exit(run(["train", *sys.argv[1:]]))
"""  # in a process of its own, which has no freed memory to give


def test_an_image_for_which_memory_lacks_is_not_taken_for_a_damaged_one(tmp_path: Path):
    for index in range(16):
        Image.new("L", (16, 16), index).save(tmp_path / f"{index}.png")
    Image.new("L", (9_000, 9_000)).save(tmp_path / "poster.png")  # 324 MB in colour
    flags = [f"--data={tmp_path}", f"--run-dir={tmp_path / 'run'}", "--image-size=16"]
    done = subprocess.run(
        [sys.executable, "-c", TRAINS_WITH_LITTLE_MEMORY, *flags, "--skip-bad-files"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "gantrain train: out of memory (while decoding poster.png): ask for fewer or smaller "
        "images at once, or use a machine with more\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_lack_of_memory_that_pytorch_finds_is_told_in_one_line_too(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gantrain.sampling.open_sampler", lambda _: torch.empty(2**50))
    assert gantrain("sample", tmp_path, "--seeds=0-3", f"--out={tmp_path / 'grid.png'}") == 1
    told = capsys.readouterr().err
    assert told.startswith("gantrain sample: out of memory ([enforce fail at alloc_cpu.cpp")
    assert told.endswith(": ask for fewer or smaller images at once, or use a machine with more\n")
    assert told.count("\n") == 1


def sampled_classes(source: Path, tmp_path: Path, *flags: str) -> list[int]:
    """The classes of four tiles, told by their shades."""
    out = tmp_path / "grid.png"
    assert gantrain("sample", source, "--seeds=0-3", f"--out={out}", *flags) == 0
    with Image.open(out) as image:
        return [nearest_class(shade) for shade in tile_shades(image, side=2)]


def test_classes_are_asked_for_by_name_or_index_and_come_in_turn_unasked(
    conditional_run: Path, tmp_path: Path
):
    classes = partial(sampled_classes, conditional_run, tmp_path)
    assert classes() == [0, 1, 2, 0]
    assert classes("--class-labels=owl") == [2, 2, 2, 2]
    assert classes("--class-labels=1") == [1, 1, 1, 1]
    assert classes("--class-labels=dog,cat,2,0") == [1, 0, 2, 0]


def test_an_animation_stays_in_the_first_class_or_follows_the_labels(
    conditional_run: Path, tmp_path: Path
):
    out = tmp_path / "walk.gif"
    flags = ["--seeds=0,1,2", "--interpolate", "--frames-per-segment=2", f"--out={out}"]
    for labels, expected in (
        ([], [0, 0, 0, 0, 0]),
        (["--class-labels=dog"], [1, 1, 1, 1, 1]),
        (["--class-labels=owl,cat,dog"], [2, 2, 0, 0, 1]),
    ):
        assert gantrain("sample", conditional_run, *flags, *labels) == 0
        with Image.open(out) as image:
            shades = [tile_shades(frame, side=1)[0] for frame in ImageSequence.Iterator(image)]
        assert [nearest_class(shade) for shade in shades] == expected


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        pytest.param("bird", "--class-labels: expected a class (cat, dog, owl)", id="name"),
        pytest.param("3", "or an index from 0 to 2, got '3'", id="index"),
        pytest.param("0-2", "--class-labels: expected 1 label or 4, one for each", id="count"),
    ],
)
def test_labels_that_make_no_sense_are_bad_usage(flag, message, conditional_run: Path, capsys):
    flags = ["--seeds=0-3", "--out=x.png", f"--class-labels={flag}"]
    assert gantrain("sample", conditional_run, *flags) == 2
    assert message in capsys.readouterr().err


def test_a_generator_without_classes_refuses_labels_by_name(small_run: Path, capsys):
    assert gantrain("sample", small_run, "--seeds=0", "--out=x.png", "--class-labels=0") == 2
    assert "--class-labels: this generator takes no labels" in capsys.readouterr().err


def test_a_conditional_run_is_reported_and_its_artifact_sampled_alike(
    conditional_run: Path, tmp_path: Path
):
    assert gantrain("report", conditional_run) == 0
    page = (conditional_run / "report.html").read_text()
    assert "3: cat, dog, owl" in page
    assert "image/gif" in page, "the interpolation"
    assert gantrain("export", conditional_run, f"--repository={tmp_path}", "--name=animals") == 0
    path = tmp_path / "animals" / "1" / "model.onnx"
    assert sampled_classes(path, tmp_path, "--class-labels=owl,1,0,owl") == [2, 1, 0, 2]


def test_export_prints_the_path_last(small_run: Path, tmp_path: Path, capsys):
    assert gantrain("export", small_run, f"--repository={tmp_path}", "--name=digits") == 0
    path = tmp_path / "digits" / "1" / "model.onnx"
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    out = tmp_path / "grid.png"
    assert gantrain("sample", path, "--seeds=0-3", f"--out={out}") == 0


def test_a_run_that_is_none_is_one_line(tmp_path: Path, capsys):
    assert gantrain("export", tmp_path, "--repository=x", "--name=digits") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no run" in line


@pytest.fixture
def flawed_zip(tmp_path: Path) -> Path:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(20):
            with archive.open(f"{index:02}.png", "w") as file:
                Image.new("RGB", (16, 16), (index, 90, 30)).save(file, "PNG")
        archive.writestr("broken.png", b"not an image")
        archive.writestr("empty.jpg", b"")
    return path


def test_data_check_names_each_bad_file_and_goes_on(flawed_zip: Path, capsys):
    assert gantrain("data", "check", flawed_zip) == 1
    captured = capsys.readouterr()
    assert "broken.png" in captured.out
    assert "empty.jpg" in captured.out
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("size", [30, 130, 132, 4])
def test_data_are_not_checked_for_a_size_that_no_network_has(size: int, capsys):
    assert gantrain("data", "check", "digits", f"--image-size={size}") == 2
    error = capsys.readouterr().err
    told = f"--image-size: expected a multiple of 4 from 8 to 128, got {size}; try "
    assert error.startswith(f"gantrain data check: {told}")


@pytest.mark.parametrize("command", [["train"], ["data", "check"]], ids=" ".join)
def test_the_help_tells_which_sizes_there_are(command: list[str], capsys):
    with pytest.raises(SystemExit):
        gantrain(*command, "--help")
    assert "a multiple of 4 from 8 to 128" in " ".join(capsys.readouterr().out.split())


def test_data_check_tells_what_a_sound_source_is(capsys):
    assert gantrain("data", "check", "digits") == 0
    report = capsys.readouterr().out
    assert "1797" in report
    assert "8x8" in report


def test_training_refuses_bad_files_or_skips_them_when_told_to(
    flawed_zip: Path, tmp_path: Path, capsys
):
    flags = ["train", f"--data={flawed_zip}", f"--run-dir={tmp_path / 'run'}", "--filters=2"]
    flags += ["--batch-size=4", "--total-images=8", "--threads=1"]
    assert gantrain(*flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.png" in line
    assert "2" in line
    assert gantrain(*flags, "--skip-bad-files") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["count"] == 20
    assert config["config"]["channels"] == 3
    assert config["config"]["flip"] == "on"


def test_ctrl_c_while_data_load_is_no_traceback(tmp_path: Path):
    picture = io.BytesIO()
    Image.new("RGB", (2048, 2048)).save(picture, "PNG")  # of few bytes, and slow to decode
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for index in range(200):  # some 10 s of decoding
            archive.writestr(f"{index}.png", picture.getvalue())
    flags = ["--data=pictures.zip", "--run-dir=run", "--threads=1", "--total-images=64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gantrain", "train", *flags],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not has_open(process, tmp_path / "pictures.zip"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    assert not (tmp_path / "run").exists()


def has_open(process: subprocess.Popen[str], path: Path) -> bool:
    files = Path(f"/proc/{process.pid}/fd")
    if not files.exists():
        pytest.skip("needs /proc to see which files a process has open")
    try:
        return any(os.path.realpath(file) == str(path) for file in files.iterdir())
    except FileNotFoundError:  # a file was closed while they were looked through
        return False


def test_a_terminal_shows_a_progress_bar(tmp_path: Path):
    terminal, ours = pty.openpty()
    termios.tcsetwinsize(ours, (24, 100))
    flags = ["--data=digits", f"--run-dir={tmp_path}", "--filters=2", "--threads=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gantrain", "train", *flags, "--total-images=640"],
        stderr=ours,
        stdout=subprocess.DEVNULL,
    )
    os.close(ours)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=60) == 0
    os.close(terminal)
    assert b"640/640" in shown
    assert b"img/s" in shown
    assert b", D " in shown, "the losses"
