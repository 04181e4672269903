import io

import numpy as np
import pytest
from PIL import Image

from gantrain.data.bad_data import DatasetError
from gantrain.data.celeba_folders import find_celeba
from gantrain.data.data_check import check_source
from gantrain.data.datasets import has_test_split, load_dataset
from gantrain.data.image_files import decode_image

SPLITS = (0, 0, 0, 0, 1, 2, 2, 0)  # of 000001.jpg and so on; the real list is sorted, ours is not


def face(number, size=(178, 218), format_="JPEG"):
    """Noise whose centre square, and nothing beyond, is the darker the higher the number."""
    pixels = np.random.default_rng(number).integers(200, 256, (size[1], size[0], 3), np.uint8)
    margin = (size[1] - size[0]) // 2
    pixels[margin : margin + size[0]] -= 10 * number
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format_, quality=95)
    return content.getvalue()


def partition(extension="txt"):
    rows = [(f"{number:06}.jpg", split) for number, split in enumerate(SPLITS, start=1)]
    if extension == "csv":
        return "".join(f"{name},{split}\n" for name, split in [("image_id", "partition"), *rows])
    return "".join(f"{name} {split}\n" for name, split in rows)


@pytest.fixture
def faces(tmp_path):
    """CelebA's folder without any list."""
    folder = tmp_path / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for number in range(1, len(SPLITS) + 1):
        (folder / f"{number:06}.jpg").write_bytes(face(number))
    return folder


@pytest.fixture
def listed(faces):
    (faces.parent / "list_eval_partition.txt").write_text(partition())
    return faces


def numbers(dataset):
    """Which faces they are, from their darkness."""
    means = dataset.images.mean(axis=(1, 2, 3))
    return np.rint((227.5 - means) / 10).astype(int).tolist()


# What it is


def test_without_a_list_all_faces_are_for_training(faces):
    dataset = load_dataset(str(faces))
    assert dataset.kind == "CelebA folder"
    assert dataset.images.shape == (8, 3, 64, 64)
    assert numbers(dataset) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (dataset.labels, dataset.class_names) == (None, ())
    with pytest.raises(DatasetError, match=r"without list_eval_partition\.txt .* no test split"):
        load_dataset(str(faces), split="test")


def test_a_part_without_test_images_has_no_test_split(listed):
    assert has_test_split(str(listed))
    for number in (6, 7):
        (listed / f"{number:06}.jpg").unlink()
    assert not has_test_split(str(listed))
    assert numbers(load_dataset(str(listed))) == [1, 2, 3, 4, 8]


def test_the_list_tells_training_and_test_images(listed):
    assert numbers(load_dataset(str(listed))) == [1, 2, 3, 4, 8]
    assert numbers(load_dataset(str(listed), split="test")) == [6, 7]


def test_the_centre_square_is_kept(listed):
    images = load_dataset(str(listed), image_size=128).images
    assert np.array_equal(images[1], decode_image(face(2), 128, 3).pixels)
    assert images[4].mean(axis=(0, 2)).max() < 160  # face 8 is dark up to its edges, 20 rows aside


def test_a_limit_takes_the_first_of_the_split(listed):
    assert numbers(load_dataset(str(listed), limit=5)) == [1, 2, 3, 4, 8]
    assert numbers(load_dataset(str(listed), limit=3)) == [1, 2, 3]


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("celeba/img_align_celeba/list_eval_partition.txt", id="among-the-images"),
        pytest.param("celeba/list_eval_partition.txt", id="beside"),
        pytest.param("celeba/Eval/list_eval_partition.txt", id="as-published"),
        pytest.param("celeba/list_eval_partition.csv", id="csv"),
        pytest.param("list_eval_partition.csv", id="csv-one-above"),
    ],
)
def test_the_list_is_found_where_copies_have_it(place, faces, tmp_path):
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(partition(path.suffix[1:]))
    assert len(load_dataset(str(faces)).images) == 5


@pytest.mark.parametrize("folder", ["img_align_celeba", "Img/img_align_celeba"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested-as-kaggle-does"])
def test_the_folder_above_will_do(folder, nested, faces, tmp_path):
    above = tmp_path / "copy"
    place = above / folder / "img_align_celeba" if nested else above / folder
    place.parent.mkdir(parents=True)
    faces.rename(place)
    dataset = load_dataset(str(above))
    assert (dataset.kind, len(dataset.images)) == ("CelebA folder", 8)


@pytest.mark.parametrize("name", ["list_eval_partition.txt", "list_attr_celeba.txt"])
def test_another_name_will_do_where_a_list_tells_what_it_is(name, faces):
    renamed = faces.rename(faces.parent / "aligned")
    assert find_celeba(renamed) is None
    (renamed.parent / name).write_text(partition())
    assert find_celeba(renamed).images == renamed
    assert load_dataset(str(renamed)).kind == "CelebA folder"


def test_faces_published_as_png_are_found_in_the_same_list(listed):
    for path in listed.iterdir():
        path.unlink()
    for number in (1, 2, 6):
        (listed / f"{number:06}.png").write_bytes(face(number, format_="PNG"))
    assert numbers(load_dataset(str(listed))) == [1, 2]


@pytest.mark.parametrize("names", [["1.jpg", "2.jpg"], ["a/000001.jpg", "b/000002.jpg"]])
def test_other_pictures_in_a_folder_of_that_name_are_pictures(names, tmp_path):
    folder = tmp_path / "img_align_celeba"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(face(1))
    assert load_dataset(str(folder)).kind == "image folder"


# What it may lack


def test_a_part_of_the_faces_will_do_but_not_of_the_list(listed):
    (listed / "000006.jpg").unlink()
    assert numbers(load_dataset(str(listed))) == [1, 2, 3, 4, 8]
    (listed / "000009.jpg").write_bytes(face(9))
    message = r"list_eval_partition\.txt: does not name 1 of the images in .*: 000009\.jpg; fetch"
    with pytest.raises(DatasetError, match=message):
        load_dataset(str(listed))


def test_a_split_of_which_no_image_is_there_is_refused(listed):
    for number in (6, 7):
        (listed / f"{number:06}.jpg").unlink()
    with pytest.raises(
        DatasetError, match="none of its 6 images is in the test split of list_eval"
    ):
        load_dataset(str(listed), split="test")


@pytest.mark.parametrize(
    "line", ["000002.jpg", "000002.jpg 3", "<html>", "000002.jpg 0 1"], ids=str.split
)
def test_a_damaged_list_is_refused_by_its_line(line, listed):
    path = listed.parent / "list_eval_partition.txt"
    path.write_text(f"000001.jpg 0\n{line}\n")
    with pytest.raises(DatasetError, match=f"^{path}: line 2: expected a file name and 0, 1 or 2"):
        load_dataset(str(listed))


def test_a_list_that_cannot_be_read_is_named(faces):
    (faces.parent / "list_eval_partition.txt").mkdir()
    with pytest.raises(DatasetError, match=r"list_eval_partition\.txt: cannot be read: Is a dir"):
        load_dataset(str(faces))


def test_a_bad_face_is_named_and_may_be_left_out(listed):
    (listed / "000002.jpg").write_bytes(face(2)[:300])
    (listed / "000006.jpg").touch()  # of the other split
    with pytest.raises(DatasetError, match=r"1 of 5 files cannot be used: 000002\.jpg: truncated"):
        load_dataset(str(listed))
    dataset = load_dataset(str(listed), skip_bad_files=True)
    assert numbers(dataset) == [1, 3, 4, 8]
    assert [bad.name for bad in dataset.bad_files] == ["000002.jpg"]


# The report


def test_the_report_tells_the_splits(listed):
    (listed.parent / "list_attr_celeba.txt").write_text("8\nSmiling Young\n")
    assert check_source(str(listed.parent)).describe() == "\n".join(
        [
            f"source     {listed.parent} (CelebA folder)",
            "images     5",
            "splits     train 5, validation 1, test 2",
            "sizes      178x218 5",
            "modes      RGB 5",
            "classes    none",
            "loaded as  64x64 RGB",
        ]
    )


def test_the_report_names_bad_faces_of_the_test_split_too(listed):
    (listed / "000006.jpg").write_text("junk")
    report = check_source(str(listed))
    assert [str(bad) for bad in report.bad_files] == ["000006.jpg: not an image"]
    assert report.count == 5  # for training, all of them
    assert "1 of 2 files cannot be used: 000006.jpg: not an image" in report.problem
    with pytest.raises(DatasetError, match=r"1 of 2 files cannot be used: 000006\.jpg: not an"):
        load_dataset(str(listed), split="test")


def test_the_report_tells_the_problem_of_training_first(listed):
    for number in (2, 5, 6):
        (listed / f"{number:06}.jpg").write_text("junk")
    report = check_source(str(listed))
    # Nothing reads 000005.jpg, of the validation split.
    assert [bad.name for bad in report.bad_files] == ["000002.jpg", "000006.jpg"]
    assert "1 of 5 files cannot be used: 000002.jpg: not an image" in report.problem


def test_without_a_list_the_report_has_no_splits(faces):
    report = check_source(str(faces))
    assert (report.kind, report.count, report.splits) == ("CelebA folder", 8, {})
