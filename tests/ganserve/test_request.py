import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from ganserve.api.request import (
    check_files,
    check_one_reply,
    parse_request,
    parse_version,
    rows_of,
)
from ganserve.encoding import ImageFormat
from ganserve.errors import InvalidRequest
from ganserve.latents import interpolate_latents
from ganserve.models.model_spec import ModelSpec
from ganserve.v1 import image_generation_pb2 as pb

LARGEST = 2**64 - 1


def spec(class_names=()):
    return ModelSpec(3, 4, 4, 3, class_names, "contract", "digest", "provider", {})


def parse(class_names=(), max_images=8, **fields):
    request = pb.GenerateImagesRequest(**fields)
    return parse_request(request, spec(class_names), max_images=max_images)


def with_seeds(*values, **fields):
    return {"seeds": pb.Seeds(values=values), **fields}


def array(*values):
    return np.array(values, np.uint64)


def test_the_plainest_request_means_png_without_truncation():
    request = parse(**with_seeds(0))
    assert (request.count, request.format) == (1, ImageFormat.PNG)
    assert (request.truncation, request.quality, request.labels) == (1.0, None, None)
    assert request.seeds.tolist() == [0]
    rows, truncation = rows_of(request, 3)
    assert rows is request.seeds
    assert truncation == 1.0


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        pytest.param(with_seeds(5, 0, 5, LARGEST), [5, 0, 5, LARGEST], id="seeds as they come"),
        pytest.param({"seed_range": {"start": 7, "count": 3}}, [7, 8, 9], id="range"),
        pytest.param({"seed_range": {"count": 8}}, list(range(8)), id="range as long as allowed"),
        pytest.param(
            {"seed_range": {"start": LARGEST - 1, "count": 2}},
            [LARGEST - 1, LARGEST],
            id="range up to the last seed",
        ),
    ],
)
def test_seeds_are_kept_in_order(fields, values):
    request = parse(**fields)
    assert request.seeds.dtype == np.uint64
    assert request.seeds.tolist() == values
    assert request.count == len(values)
    rows, truncation = rows_of(request, 3)
    assert rows is request.seeds
    assert truncation == 1.0


def test_latents_are_rows_and_truncated_too():
    request = parse(latents={"values": [1, 2, 3, 4, 5, 6]}, truncation=0.5)
    assert request.count == 2
    assert request.seeds.size == 0
    latents, truncation = rows_of(request, 3)
    assert latents.tolist() == [[0.5, 1.0, 1.5], [2.0, 2.5, 3.0]]
    assert truncation == 1.0, "done already"


@pytest.mark.parametrize("truncation", [2.0**-149, 1.0], ids=["smallest", "largest"])
def test_a_truncation_may_be_as_small_as_a_number_and_as_large_as_one(truncation):
    assert parse(**with_seeds(1, truncation=truncation)).truncation == truncation


def test_the_truncation_of_seeds_is_left_to_the_batcher():
    request = parse(**with_seeds(1, truncation=0.5))
    rows, truncation = rows_of(request, 3)
    assert rows is request.seeds
    assert truncation == 0.5


def test_an_interpolation_has_its_frames_and_is_truncated_as_a_whole():
    request = parse(interpolation={"seeds": [1, 2], "frames_per_segment": 3}, truncation=0.5)
    assert request.count == 4
    assert request.seeds.size == 0
    latents, truncation = rows_of(request, 3)
    assert (latents == interpolate_latents(array(1, 2), 3, 3) * np.float32(0.5)).all()
    assert truncation == 1.0, "done already"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param([1], [1, 1, 1], id="one for all"),
        pytest.param([0, 1, 0], [0, 1, 0], id="one for each"),
    ],
)
def test_labels_are_one_for_each_image(labels, expected):
    request = parse(("a", "b"), **with_seeds(1, 2, 3, class_labels=labels))
    assert request.labels.dtype == np.int64
    assert request.labels.tolist() == expected


@pytest.mark.parametrize(
    ("number", "image_format", "quality"),
    [
        pytest.param(pb.IMAGE_FORMAT_RAW, ImageFormat.RAW, None, id="raw"),
        pytest.param(pb.IMAGE_FORMAT_PNG, ImageFormat.PNG, None, id="png"),
        pytest.param(pb.IMAGE_FORMAT_JPEG, ImageFormat.JPEG, 1, id="jpeg"),
        pytest.param(pb.IMAGE_FORMAT_WEBP, ImageFormat.WEBP, 100, id="webp"),
    ],
)
def test_formats_and_qualities_are_taken(number, image_format, quality):
    request = parse(**with_seeds(1, format=number, quality=quality))
    assert (request.format, request.quality) == (image_format, quality)


@pytest.mark.parametrize(
    ("field", "problem", "fields"),
    [
        pytest.param("source", "expected one of seeds", {}, id="no source"),
        pytest.param("seeds.values", "expected 1 to 8 seeds, got 0", with_seeds(), id="no seeds"),
        pytest.param("seeds.values", "got 9", with_seeds(*range(9)), id="too many seeds"),
        pytest.param("seed_range.count", "got 0", {"seed_range": {"start": 1}}, id="empty range"),
        pytest.param(
            "seed_range.count",
            "got 4294967295",
            {"seed_range": {"count": 2**32 - 1}},
            id="endless range",
        ),
        pytest.param(
            "seed_range",
            r"up to 2\^64 - 1, got start 18446744073709551615 and count 2",
            {"seed_range": {"start": LARGEST, "count": 2}},
            id="range past the last seed",
        ),
        pytest.param("latents.values", "got 0", {"latents": {}}, id="no latents"),
        pytest.param(
            "latents.latent_dim",
            "expected the model's, 3, got 6",
            {"latents": {"values": [0] * 6, "latent_dim": 6}},
            id="rows of another length",
        ),
        pytest.param(
            "latents.values",
            r"latent_dim \(3\).*got 4",
            {"latents": {"values": [0] * 4}},
            id="size",
        ),
        pytest.param(
            "latents.values", "1 to 8 rows, got 9", {"latents": {"values": [0] * 27}}, id="rows"
        ),
        pytest.param(
            "latents.values", "got nan at 1", {"latents": {"values": [0, np.nan, 0]}}, id="nan"
        ),
        pytest.param(
            "latents.values", "got -inf at 2", {"latents": {"values": [0, 0, -np.inf]}}, id="inf"
        ),
        pytest.param(
            "interpolation.seeds",
            "at least 2 seeds, got 1",
            {"interpolation": {"seeds": [1], "frames_per_segment": 2}},
            id="one station",
        ),
        pytest.param(
            "interpolation.frames_per_segment",
            "at least 1 frame, got 0",
            {"interpolation": {"seeds": [1, 2]}},
            id="no frames",
        ),
        pytest.param(
            "interpolation",
            "1 to 8 frames in all, got 9",
            {"interpolation": {"seeds": [1, 2, 3], "frames_per_segment": 4}},
            id="too many frames",
        ),
        *(
            pytest.param("truncation", "at most 1", with_seeds(1, truncation=value), id=str(value))
            for value in (0, -1, 1.01, float("nan"), float("inf"))
        ),
        pytest.param(
            "truncation",
            r"at most 1, got 1\.0000001",
            with_seeds(1, truncation=1 + 2**-23),
            id="the next number after 1",
        ),
        pytest.param("format", "IMAGE_FORMAT_PNG, .*got 99", with_seeds(1, format=99), id="format"),
        pytest.param("quality", "none for PNG", with_seeds(1, quality=90), id="quality of PNG"),
        pytest.param(
            "quality", "none for RAW", with_seeds(1, quality=1, format=1), id="quality of RAW"
        ),
        pytest.param(
            "quality", "1 to 100, got 0", with_seeds(1, quality=0, format=3), id="quality 0"
        ),
        pytest.param(
            "quality", "1 to 100, got 101", with_seeds(1, quality=101, format=4), id="quality 101"
        ),
        pytest.param(
            "class_labels", "not conditional", with_seeds(1, class_labels=[0]), id="labels"
        ),
    ],
)
def test_a_bad_field_is_named_with_what_came(field, problem, fields):
    with pytest.raises(InvalidRequest, match=problem) as error:
        parse(**fields)
    assert error.value.field == field
    assert str(error.value).startswith(f"{field}: expected")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        pytest.param([1], [1, 1, 1, 1, 1], id="one for all"),
        pytest.param([0, 1, 1, 0, 1], [0, 1, 1, 0, 1], id="one each"),
    ],
)
def test_labels_of_an_interpolation_are_those_of_its_frames(given, taken):
    walk = {"interpolation": {"seeds": [1, 2, 3], "frames_per_segment": 2}}
    labels = parse(("a", "b"), class_labels=given, **walk).labels
    assert labels is not None
    assert labels.tolist() == taken
    with pytest.raises(InvalidRequest, match="1 label for all images or 5, one for each, got 3"):
        parse(("a", "b"), class_labels=[0, 1, 0], **walk)  # one for each seed


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        pytest.param([], "expected 1 label for all images or 3, one for each, got 0", id="none"),
        pytest.param([0, 1], "got 2", id="wrong count"),
        pytest.param([0, 2, 1], "labels from 0 to 1, got 2", id="out of range"),
        pytest.param([2**32 - 1], "got 4294967295", id="far out of range"),
    ],
)
def test_bad_labels_of_a_conditional_model_are_named(labels, problem):
    with pytest.raises(InvalidRequest, match=problem) as error:
        parse(("a", "b"), **with_seeds(1, 2, 3, class_labels=labels))
    assert error.value.field == "class_labels"


@pytest.mark.parametrize(
    ("text", "number"), [("", None), ("1", 1), ("907", 907), (str(2**63 - 1), 2**63 - 1)]
)
def test_a_version_is_read(text, number):
    assert parse_version("version", text) == number


@pytest.mark.parametrize(
    "text", ["0", "01", "-1", "1.0", "one", " 1", str(2**63), "9" * 5000, "\u0663"]
)
def test_a_version_that_is_no_positive_integer_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"^version: expected a positive integer"):
        parse_version("version", text)


def test_only_pixels_are_limited_to_one_message_before_they_are_made():
    large = ModelSpec(3, 9000, 9000, 3, (), "contract", "digest", "provider", {})
    check_one_reply("format", parse(format=pb.IMAGE_FORMAT_RAW, **with_seeds(*range(8))), large)
    more = with_seeds(*range(9))
    with pytest.raises(InvalidRequest, match="at most 8 images of this model as pixels"):
        check_one_reply("format", parse(max_images=9, format=pb.IMAGE_FORMAT_RAW, **more), large)
    check_one_reply("format", parse(max_images=9, format=pb.IMAGE_FORMAT_PNG, **more), large)


def test_files_go_into_one_message_with_their_seeds_and_lengths(monkeypatch):
    files = [bytes(30)] * 21
    reply = pb.GenerateImagesResponse(images=files, seeds=[LARGEST] * len(files))
    monkeypatch.setattr("ganserve.api.request._LARGEST_REPLY_BYTES", reply.ByteSize() - 1)
    with pytest.raises(InvalidRequest, match=f"got {len(files) * (30 + 16)}: "):
        check_files(files)
    monkeypatch.setattr("ganserve.api.request._LARGEST_REPLY_BYTES", len(files) * (30 + 16))
    check_files(files)


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_message_is_either_sound_or_refused(content):
    request = pb.GenerateImagesRequest()
    try:
        request.ParseFromString(content)
        generation = parse_request(request, spec(), max_images=8)
    except (InvalidRequest, DecodeError):
        return
    rows, _ = rows_of(generation, 3)
    assert rows.shape in ((generation.count,), (generation.count, 3))
