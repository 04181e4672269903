import zipfile
from pathlib import Path

import pytest

from gantrain.data.bad_data import DatasetError
from gantrain.data.data_check import check_source
from gantrain.data.datasets import load_dataset
from gantrain.data.meant_sources import find_places

MNIST = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")
    return folder


def zip_of(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "words")
    return path


@pytest.mark.parametrize(
    ("names", "places"),
    [
        pytest.param([f"MNIST/raw/{name}" for name in MNIST], ["MNIST/raw"], id="mnist"),
        pytest.param(["cifar-10-batches-bin/data_batch_1.bin"], ["cifar-10-batches-bin"], id="bin"),
        pytest.param(["x/cifar-10-binary.tar.gz"], ["x/cifar-10-binary.tar.gz"], id="tar"),
        pytest.param(["b10/a.ZIP", "b9/a.zip"], ["b9/a.zip", "b10/a.ZIP"], id="zips"),
        pytest.param(
            [
                "k/train-images-idx3-ubyte/train-images-idx3-ubyte",
                "k/train-images.idx3-ubyte",
                "k/notes.zip",
            ],
            ["k"],
            id="kaggles-folders",
        ),
        pytest.param(["a.txt", "b/c.tar.gz", "b/labels.gz"], [], id="nothing"),
    ],
)
def test_data_among_other_files_are_found(names, places):
    assert find_places(names) == places


@pytest.mark.parametrize("look", [load_dataset, check_source], ids=["train", "data check"])
def test_a_folder_above_data_names_them(look, tmp_path):
    source = fill(tmp_path, [f"mnist/{name}" for name in MNIST])
    with pytest.raises(DatasetError) as caught:
        look(str(source))
    assert str(caught.value) == f"{source}: no images in it; give {source}/mnist"
    fill(source, [f"fashion/{name}" for name in MNIST])
    with pytest.raises(DatasetError, match=f"give one of {source}/fashion, {source}/mnist$"):
        look(str(source))


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        pytest.param(MNIST, "unpack it and give the folder", id="outermost"),
        pytest.param([f"raw/{name}" for name in MNIST], "unpack it and give raw", id="below"),
        pytest.param(["a.zip", "b.zip"], "unpack it and give one of a.zip, b.zip", id="zips"),
    ],
)
def test_a_zip_of_data_is_to_be_unpacked(names, advice, tmp_path):
    source = zip_of(tmp_path / "archive.zip", names)
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(source))
    assert str(caught.value) == f"{source}: no images in it; {advice}"


@pytest.mark.parametrize("name", ["cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz"])
def test_pickles_are_told_for_what_they_are(name, tmp_path):
    source = fill(tmp_path, [name, "readme.html"])
    with pytest.raises(DatasetError, match=f"^{source}: the Python version of CIFAR-10, .* fetch"):
        load_dataset(str(source))
