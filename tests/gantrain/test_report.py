import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from gantrain.checkpoint import checkpoint_path, checkpoint_paths, load_checkpoint
from gantrain.config import TrainConfig
from gantrain.diagnosis.advice import steady
from gantrain.diagnosis.diagnostics import diagnose
from gantrain.errors import RunError
from gantrain.evaluation.results import Evaluation, write_evaluation
from gantrain.networks import count_parameters
from gantrain.presets import resolve
from gantrain.report import list_diagnoses, list_pictures, list_settings, write_report
from gantrain.run_directory import RunDirectory, open_run
from gantrain.run_log import append_metrics, read_metrics
from gantrain.sampling import load_run_generator
from gantrain.training.loop import train

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OFFLINE = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> RunDirectory:
    """A finished run of its own to change."""
    return RunDirectory(Path(shutil.copytree(small_run, tmp_path / "run")))


def report(run: RunDirectory) -> str:
    return write_report(run.path).read_text()


def change_config(run: RunDirectory, **values: Any) -> None:
    config, data = run.read()
    run.write(config.model_copy(update=values), data)


def embedded(page: str) -> list[bytes]:
    """What its img and source elements show."""
    sources = re.findall(r'\bsrc(?:set)?="data:image/\w+;base64,([^"]+)', page)
    return [base64.b64decode(source) for source in sources]


def test_a_report_tells_the_state_the_diagnosis_and_the_settings(run: RunDirectory):
    config, data = run.read()
    rows = read_metrics(run.metrics_file)
    page = report(run)
    assert "Finished: 1,024 images seen" in page
    assert diagnose(rows, config).state in page
    assert data.fingerprint in page
    assert all(f"--{name.replace('_', '-')}" in page for name in TrainConfig.model_fields)
    newest = load_run_generator(run.path)
    counts = count_parameters(newest.generator.generator)
    assert f'<td class="number">{counts["total"]:,}</td>' in page
    assert "<h3>Losses</h3>" in page
    assert '<h2 id="quality">' not in page


@pytest.mark.parametrize("data", ["digits", "ring8"])
def test_each_chart_of_a_run_says_what_to_look_for(data: str, tmp_path: Path):
    settings = {"data": data, "batch_size": 16, "threads": 1, "total_images": 128, "filters": 4}
    train(resolve({**settings, "run_dir": tmp_path / "run"}))
    page = write_report(tmp_path / "run").read_text()
    charts = page.split('<div class="curves">')[1].split("</section>")[0].split("</figure>")[:-1]
    titles = [re.search("<h3>(.*)</h3>", chart) for chart in charts]
    assert len(charts) > 10
    assert [title[1] for title, c in zip(titles, charts, strict=True) if "caption" not in c] == []


@pytest.mark.parametrize(
    ("energy_distance", "state", "meaning"),
    [
        (0.0, "healthy", "<code>gantrain evaluate</code> measures more closely."),
        (0.02, "still learning", "give a larger <code>--total-images</code>."),
    ],
)
def test_a_state_in_which_nothing_is_wrong_is_explained(
    energy_distance: float, state: str, meaning: str, run: RunDirectory
):
    rows = [row for row in read_metrics(run.metrics_file) if "energy_distance" in row]
    sound = {name: value for name, value in rows[-1].items() if name.endswith("_data")}
    sound |= {name.removesuffix("_data"): value for name, value in sound.items()}
    at_rest = {"diversity": 1.0, "feature_diversity": 1.0, "images_seen": 8192, "seconds": 1.0}
    run.metrics_file.unlink()
    distance = sound["energy_distance"] + energy_distance
    append_metrics(run.metrics_file, sound | at_rest | {"energy_distance": distance})
    page = report(run)
    assert f'<p class="verdict">{state}</p>' in page
    assert meaning in page


def test_a_report_embeds_all_pictures_and_asks_for_nothing_else(run: RunDirectory):
    page = report(run)
    pictures = embedded(page)
    for content in pictures:
        Image.open(io.BytesIO(content)).load()
    for path in [*run.samples.iterdir(), max(run.sheets.iterdir())]:
        assert path.read_bytes() in pictures
    assert any(content.startswith(b"GIF") for content in pictures)
    links = re.findall(r"\b(?:src|srcset|href|action|data)=\"([^\"]*)\"", page)
    assert links
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttp", page)


@pytest.mark.parametrize(
    ("loss", "caption"),
    [
        ("relativistic", "0.5: as real as the real ones, for this loss only compares."),
        ("bce", "1 for surely real."),
    ],
)
def test_the_caption_of_a_sheet_says_what_its_scores_mean(
    loss: str, caption: str, run: RunDirectory
):
    values = json.loads(run.config_file.read_text())
    values["config"]["loss"] = loss
    run.config_file.write_text(json.dumps(values))
    assert f"score, {caption}</figcaption>" in report(run)


def test_what_users_name_is_escaped(run: RunDirectory):
    config, facts = run.read()
    evil = "<img src=x onerror=alert(1)>"
    values = json.loads(run.config_file.read_text())
    values["config"]["data"] = values["data"]["kind"] = evil
    values["data"]["class_names"] = [f"{evil}{index}" for index in range(10)]
    run.config_file.write_text(json.dumps(values))
    (run.path / "evaluation.json").write_text(evaluation(evil).to_json())
    append_metrics(run.metrics_file, {"images_seen": 1025, "diagnosis": evil, evil: 1.0})
    moved = run.path.rename(run.path.parent / "<b>")
    page = report(RunDirectory(moved))
    assert "<img src=x" not in page
    assert "<b>" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;9") >= 1
    assert config.data != evil
    assert facts.kind != evil


def test_an_interrupted_run_says_how_to_go_on(run: RunDirectory):
    change_config(run, total_images=4096)
    assert (
        "Stopped at 1,024 of 4,096 images (25 %); the same <code>gantrain train</code>"
        in report(run)
    )


def test_a_run_that_diverged_says_so_until_it_has_gone_past_it(run: RunDirectory):
    change_config(run, run_dir=run.path, total_images=1040)
    config, _ = run.read()
    newest = checkpoint_paths(run.checkpoints)[0]
    good = newest.read_bytes()
    values = load_checkpoint(newest)
    values["generator_optimizer"]["state"][0]["exp_avg_sq"] *= float("nan")
    torch.save(values, newest)
    # One step more, the last: a run that diverges there has not finished.
    with pytest.raises(RunError, match="became nan"):
        train(config)
    page = report(run)
    assert (
        "Ended by divergence at 1,040 of 1,040 images (100 %): weights became nan or infinite "
        "(first weights not finite: generator.project.weight); on a CPU the same "
        "<code>gantrain train</code> command ends like that again; with "
        "<code>--on-divergence rollback</code> it goes back to the last checkpoint and halves the "
        "learning rate, and the advice below" in page
    )
    change_config(run, run_dir=run.path, total_images=1040, on_divergence="rollback")
    page = report(run)
    assert "command ends like that again, and the advice below" in page
    assert '<p class="verdict">diverged</p>' in page
    assert f"<li>{steady(config)[0]}</li>" in page
    assert list_diagnoses(read_metrics(run.metrics_file))[-1] == (1040, "diverged")
    newest.write_bytes(good)
    train(config)
    page = report(run)
    assert "Finished: 1,040 images seen" in page
    assert "diverged" not in page.split("<h2")[1], "what the run got past is no finding"
    assert "diverged" not in run.metrics_file.read_text()


def test_a_run_that_went_back_says_how_often(run: RunDirectory):
    for count, told in ((1, "0:01:05, 1 rollback"), (2, "0:01:05, 2 rollbacks")):
        append_metrics(run.metrics_file, {"images_seen": 1025, "seconds": 65.0, "rollbacks": count})
        assert told in report(run)


def test_a_run_in_progress_says_so_and_is_not_disturbed(run: RunDirectory):
    change_config(run, total_images=4096)
    with open_run(run.path):
        append_metrics(run.metrics_file, {"images_seen": 2048, "seconds": 65.0})
        assert "Training now: 2,048 of 4,096 images seen (50 %) in 0:01:05" in report(run)
    with open_run(run.path):  # the report has let go of the lock
        pass


def test_a_run_with_one_row_has_a_report(run: RunDirectory):
    row = read_metrics(run.metrics_file)[0]
    run.metrics_file.write_text(json.dumps(row) + "\n" + '{"images_s')
    page = report(run)
    assert f"Stopped at {row['images_seen']:,} of 1,024 images" in page
    assert "<h3>Losses</h3>" in page


def test_a_run_that_has_only_begun_has_a_report(run: RunDirectory):
    for folder in (run.samples, run.sheets, run.checkpoints):
        shutil.rmtree(folder)
    run.metrics_file.unlink()
    page = report(run)
    assert "Stopped at 0 of 1,024 images (0 %)" in page
    assert "No samples were saved yet." in page
    assert "No metrics were written yet" in page
    assert embedded(page) == []


def test_a_run_whose_metrics_are_lost_is_where_its_checkpoint_is(run: RunDirectory):
    change_config(run, total_images=4096)
    run.metrics_file.unlink()
    assert "Stopped at 1,024 of 4,096 images (25 %)" in report(run)


def test_checkpoints_that_cannot_be_read_cost_the_interpolation_alone(run: RunDirectory):
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"damaged")
    page = report(run)
    assert "is usable; put a good one back" in page
    assert len(embedded(page)) == len(list(run.samples.iterdir())) + 1


def test_a_run_on_points_shows_scatter_plots_and_no_interpolation(tmp_path: Path):
    settings = {"data": "ring8", "batch_size": 16, "threads": 1, "total_images": 128}
    train(resolve({**settings, "run_dir": tmp_path / "run"}))
    run = RunDirectory(tmp_path / "run")
    page = report(run)
    assert "Scatter plot of samples over the data after 128 images" in page
    assert len(embedded(page)) == len(list(run.samples.iterdir()))
    assert "Interpolation" not in page


def test_an_evaluation_is_shown_as_a_table(run: RunDirectory):
    write_evaluation(evaluation("classifier"), run.path)
    page = report(run)
    row = '<th scope="row">frechet distance</th><td class="number">12.35 ± 0.5 (real 1.25)</td>'
    assert row in page
    assert "Features: classifier; 98.75 % right on 360 held-out images." in page
    assert "Generator: classifier, 1,024 images seen." in page
    assert "<p>classifier is noted</p>" in page


def test_an_evaluation_of_other_weights_is_said_to_be_so(run: RunDirectory):
    newest = load_run_generator(run.path)
    for weights, outdated in ((newest.weights, False), ("of another time", True)):
        values = evaluation("classifier").model_dump()
        values["generator"] |= {"images_seen": 512, "weights": weights}
        write_evaluation(Evaluation.model_validate(values), run.path)
        told = (
            "These numbers are of other weights (after 512 images) than the newest "
            "checkpoint&#39;s (after 1,024 images): run <code>gantrain evaluate</code> again."
        )
        assert (told in report(run)) == outdated


def test_evaluations_of_single_checkpoints_are_a_table(run: RunDirectory):
    assert "Quality of single checkpoints" not in report(run)
    for images_seen, distance in ((512, 7.5), (1024, 12.25)):
        values = evaluation("small").model_dump()
        values["generator"]["images_seen"] = images_seen
        values["measurements"]["frechet_distance"]["mean"] = distance
        checkpoint = checkpoint_path(run.checkpoints, images_seen)  # the first is there no more
        write_evaluation(Evaluation.model_validate(values), checkpoint)
        if images_seen == 512:
            write_evaluation(Evaluation.model_validate(values), run.best_checkpoint)
    page = report(run)
    best, last = page.index("7.5 ± 0.5</td>"), page.index("12.25 ± 0.5</td>")
    first, second = (page.index(f'scope="row">{row}</th>') for row in ("512, best", "1,024"))
    assert first < best < second < last


def evaluation(name: str) -> Evaluation:
    """What might have been found, with a name in all places that have one."""
    values = {
        "generator": {"source": name, "images_seen": 1024, "weights": name},
        "data": {"source": name, "fingerprint": name, "trained_on": True, "reals": name},
        "features": {"kind": name, "accuracy": 0.9875, "held_out": 360},
        "samples": 100,
        "repeats": 3,
        "measurements": {
            "frechet_distance": {"mean": 12.3456789, "spread": 0.5, "floor": 1.25},
            name: {"mean": 1},
        },
        "classes": {name: {"share": 1, "share_in_data": 1}},
        "notes": [f"{name} is noted"],
    }
    return Evaluation.model_validate(values)


def test_the_history_of_the_diagnosis_lists_its_changes():
    states = ["too early", None, "healthy", "healthy", None, "collapsing", "healthy"]
    rows = [
        {"images_seen": 100 * index} | ({"diagnosis": state} if state else {})
        for index, state in enumerate(states)
    ]
    assert list_diagnoses(rows) == [
        (0, "too early"),
        (200, "healthy"),
        (500, "collapsing"),
        (600, "healthy"),
    ]


def test_settings_that_differ_from_the_defaults_come_first(run: RunDirectory):
    config, _ = run.read()
    changed, unchanged = list_settings(config)
    assert {"--data", "--filters", "--batch-size"} <= {setting.flag for setting in changed}
    assert {"--beta1", "--seed"} <= {setting.flag for setting in unchanged}
    assert len(changed) + len(unchanged) == len(TrainConfig.model_fields)
    filters = next(setting for setting in changed if setting.flag == "--filters")
    assert (filters.value, filters.default) == ("4", "64")


def test_a_long_history_is_thinned_evenly_and_keeps_its_ends(tmp_path: Path):
    for index in range(1, 101):
        (tmp_path / f"{index:012d}.png").touch()
    (tmp_path / ".000000000200.png.123.partial").touch()
    chosen = [int(path.stem) for path in list_pictures(tmp_path)]
    assert (chosen[0], chosen[-1], len(chosen)) == (1, 100, 40)
    assert set(np.diff(chosen)) == {2, 3}


def test_a_page_with_many_large_pictures_stays_below_20_megabytes(run: RunDirectory):
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3)).astype(np.uint8)
    first = run.samples / f"{1:012d}.png"
    Image.fromarray(noise).save(first)
    for index in range(2, 60):
        (run.samples / f"{index:012d}.png").hardlink_to(first)
    assert first.stat().st_size * 40 > 25_000_000
    path = write_report(run.path)
    assert path.stat().st_size < 20_000_000
    shown = Image.open(io.BytesIO(embedded(path.read_text())[0]))
    assert shown.width >= 250  # smaller, and still a picture to look at


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="holds no run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("samples/000000000001.png", "torn", "it is no picture", id="sample"),
        pytest.param("evaluation.json", "[1]", "expected what `gantrain", id="evaluation-list"),
        pytest.param("evaluation.json", "{", "expected what `gantrain", id="evaluation-torn"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    run: RunDirectory, name: str, content: str, message: str
):
    (run.path / name).write_text(content)
    with pytest.raises(RunError, match=f"{name} cannot be used: .*{message}"):
        write_report(run.path)
    assert not run.report_file.exists()


def test_a_report_for_a_full_disk_is_refused_with_the_reason(small_run: Path, mount):
    disk = mount("size=1m")
    shutil.copytree(
        small_run, disk / "run", ignore=shutil.ignore_patterns("tensorboard", "checkpoints")
    )
    with (disk / "filler").open("wb") as file, pytest.raises(OSError, match="No space left"):
        file.write(bytes(2_000_000))
    with pytest.raises(RunError, match=r"report\.html could not be written: No space left"):
        write_report(disk / "run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=OFFLINE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def shown_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished and evaluated run with its report."""
    path = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("shown") / "run"))
    write_evaluation(evaluation("small_cnn_classifier"), path)
    write_report(path)
    return RunDirectory(path)


@pytest.mark.parametrize("width", [1200, 390, 320], ids=["desktop", "phone", "small-phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_whole_report_without_a_network(
    browser: Browser, shown_run: RunDirectory, width: int, scheme: str
):
    path = shown_run.report_file
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    assert page.evaluate("Promise.all([...document.images].map(i => i.decode())).then(() => true)")
    sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert (
        len(sizes) == len(list(shown_run.samples.iterdir())) + 3
    )  # sheet, interpolation, its rest
    assert min(sizes) > 0
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert said == []
    config, _ = shown_run.read()
    state = diagnose(read_metrics(shown_run.metrics_file), config).state
    assert page.get_by_text(state, exact=True).first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    context.close()


def test_the_slider_moves_the_picture_by_keyboard(browser: Browser, shown_run: RunDirectory):
    page = browser.new_page()
    page.goto(shown_run.report_file.as_uri())
    frames = page.locator("#frames img")
    names = [path.stem for path in list_pictures(shown_run.samples)]
    slider = page.get_by_role("slider")

    def visible() -> list[int]:
        return [index for index in range(frames.count()) if frames.nth(index).is_visible()]

    assert visible() == [len(names) - 1]
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert visible() == [len(names) - 2]
    assert page.locator("#position").inner_text() == f"{int(names[-2]):,} images seen"
    assert slider.get_attribute("aria-valuetext") == f"{int(names[-2]):,} images seen"
    page.keyboard.press("Home")
    assert visible() == [0]
    page.close()


def test_the_interpolation_can_be_paused(browser: Browser, shown_run: RunDirectory):
    page = browser.new_page()
    page.goto(shown_run.report_file.as_uri())
    moving, still = page.locator("#walk img"), page.locator("#rest")
    assert (moving.is_visible(), still.is_visible()) == (True, False)
    page.get_by_role("button", name="Pause").click()
    assert (moving.is_visible(), still.is_visible()) == (False, True)
    page.close()


def test_who_wants_no_motion_sees_none(browser: Browser, shown_run: RunDirectory):
    page = browser.new_page(reduced_motion="reduce")
    page.goto(shown_run.report_file.as_uri())
    source = page.evaluate("document.querySelector('#walk img').currentSrc")
    assert source.startswith("data:image/png")
    assert not page.get_by_role("button", name="Pause").is_visible()
    page.close()


def test_without_scripts_the_last_samples_are_shown(browser: Browser, shown_run: RunDirectory):
    page = browser.new_page(java_script_enabled=False)
    page.goto(shown_run.report_file.as_uri())
    frames = page.locator("#frames img")
    shown = [index for index in range(frames.count()) if frames.nth(index).is_visible()]
    assert shown == [frames.count() - 1]
    assert not page.locator("#slider").is_visible()
    assert page.locator("#position").inner_text() == "1,024 images seen"
    page.close()
