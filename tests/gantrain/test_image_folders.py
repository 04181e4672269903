import os
import zipfile

import pytest
from PIL import Image

from gantrain.data.bad_data import BadFileError, DatasetError
from gantrain.data.image_folders import MAX_FILE_BYTES, natural_key, open_listing

PIXEL = b"\x89PNG, or so its name and its first bytes say"


def fill(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXEL)
    return folder


def zip_of(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, PIXEL)
    return path


def names_in(path):
    with open_listing(path) as listing:
        return [file.name for file in listing.files]


NAMES = ["b/2.png", "b/10.png", "a/1.PNG", "c.jpeg"]
ORDERED = ["a/1.PNG", "b/2.png", "b/10.png", "c.jpeg"]


def test_a_folder_is_listed_in_natural_order(tmp_path):
    assert names_in(fill(tmp_path, NAMES)) == ORDERED


def test_a_zip_is_listed_in_natural_order_whatever_its_name(tmp_path):
    assert names_in(zip_of(tmp_path / "pictures.dat", NAMES)) == ORDERED


def test_a_zip_and_a_folder_give_the_same_bytes(tmp_path):
    for path in (fill(tmp_path / "folder", NAMES), zip_of(tmp_path / "a.zip", NAMES)):
        with open_listing(path) as listing:
            assert [file.read() for file in listing.files] == [PIXEL] * len(NAMES)


def test_backslashes_in_a_zip_are_folders(tmp_path):
    assert names_in(zip_of(tmp_path / "a.zip", ["cats\\1.png"])) == ["cats/1.png"]


def test_a_zip_that_was_packed_from_beside_the_folder_is_listed(tmp_path):
    names = ["../photos/cat/1.png", "../photos/dog/2.png", "../photos/.hidden/3.png"]
    assert names_in(zip_of(tmp_path / "a.zip", names)) == names[:2]


@pytest.mark.parametrize("pack", [fill, zip_of], ids=["folder", "zip"])
def test_hidden_files_are_passed_over_in_silence(pack, tmp_path):
    path = pack(tmp_path / "source", ["a.png", ".b.png", ".git/c.png", "__MACOSX/a.png"])
    with open_listing(path) as listing:
        assert [file.name for file in listing.files] == ["a.png"]
        assert listing.ignored == {}


def test_other_files_are_counted_by_extension_most_first(tmp_path):
    fill(tmp_path, ["a.png"])
    for name in ("LICENSE", "notes.txt", "more.TXT"):
        (tmp_path / name).write_text("words")
    with open_listing(tmp_path) as listing:
        assert [file.name for file in listing.files] == ["a.png"]
        assert list(listing.ignored.items()) == [(".txt", 2), ("no extension", 1)]


@pytest.mark.parametrize("pack", [fill, zip_of], ids=["folder", "zip"])
def test_an_image_without_an_extension_is_known_by_its_content(pack, tmp_path):
    assert names_in(pack(tmp_path / "source", ["3f9ac1"])) == ["3f9ac1"]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    fill(tmp_path / "elsewhere", ["1.png"])
    source = fill(tmp_path / "source", ["0.png"])
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "self").symlink_to(source)
    with open_listing(source) as listing:
        assert [file.name for file in listing.files] == ["0.png", "linked/1.png"]
        assert listing.bad_folders == ()


def test_a_folder_that_links_give_twice_is_taken_once_and_named(tmp_path):
    faces = fill(tmp_path / "faces", ["1.png", "more/2.png"])
    source = fill(tmp_path / "source", ["z/3.png"])
    for name in ("x", "y"):
        (source / name).symlink_to(faces)
    with open_listing(source) as listing:
        assert [file.name for file in listing.files] == ["x/1.png", "x/more/2.png", "z/3.png"]
        assert [str(bad) for bad in listing.bad_folders] == [
            "y: the same folder as x: remove the link, or let it lead elsewhere"
        ]


def test_names_are_kept_on_one_line(tmp_path):
    assert names_in(fill(tmp_path, ["two\nlines.png"])) == [r"two\nlines.png"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("2.png", "10.png", id="numbers-by-value"),
        pytest.param("01.png", "1.png", id="equal-numbers-by-spelling"),
        pytest.param("a9/1.png", "a10/0.png", id="folders-by-value"),
        pytest.param("9" * 5000, "9" * 5000 + "a", id="more-digits-than-int-takes"),
    ],
)
def test_natural_order(before, after):
    assert natural_key(before) < natural_key(after)


def read_only_file(path):
    with open_listing(path) as listing:
        (file,) = listing.files
        return file.read()


def named_pipe(folder):
    os.mkfifo(folder / "pipe.png")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(
            lambda folder: (folder / "a.png").symlink_to(folder / "gone.png"),
            "cannot be read: No such file or directory",
            id="dangling-link",
        ),
        pytest.param(named_pipe, "not a regular file", id="named-pipe"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(spoil, reason, tmp_path):
    spoil(tmp_path)
    with pytest.raises(BadFileError, match=reason):
        read_only_file(tmp_path)


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: takes no space
    with pytest.raises(BadFileError, match="too large: 268435457 bytes, the limit is 268435456"):
        read_only_file(tmp_path)


def patch_entry(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def encrypt(path):
    # Sets the flag in the local and in the central header.
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def announce_gigabytes(path):
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path.write_bytes(data)


def choose_unknown_compression(path):
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 10
    data[at : at + 2] = (97).to_bytes(2, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(encrypt, "encrypted: pack the zip without a password", id="encrypted"),
        pytest.param(announce_gigabytes, "too large: 2147483648 bytes", id="bomb"),
        pytest.param(
            lambda path: patch_entry(path, PIXEL, PIXEL[::-1]),
            "damaged in the zip: Bad CRC-32",
            id="wrong-checksum",
        ),
        pytest.param(
            choose_unknown_compression,
            "damaged in the zip: .*compression",
            id="unknown-compression",
        ),
    ],
)
def test_a_zip_entry_that_cannot_be_read_says_why(spoil, reason, tmp_path):
    path = zip_of(tmp_path / "a.zip", ["a.png"])
    spoil(path)
    with pytest.raises(BadFileError, match=reason):
        read_only_file(path)


def truncated_zip(path):
    zip_of(path, NAMES)
    path.write_bytes(path.read_bytes()[:-40])


def zip_with_a_damaged_directory(path):
    zip_of(path, NAMES)
    patch_entry(path, b"PK\x01\x02", b"PK\x01\x09")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(truncated_zip, "damaged or incomplete zip", id="truncated-zip"),
        pytest.param(zip_with_a_damaged_directory, "damaged or incomplete zip", id="damaged-zip"),
        pytest.param(lambda path: path.write_bytes(b""), "empty file", id="empty-file"),
        pytest.param(
            lambda path: Image.new("L", (16, 16)).save(path, "PNG"),
            "a single image; give the folder that holds your images",
            id="single-image",
        ),
        pytest.param(
            lambda path: path.write_text("buy milk"),
            "neither a folder nor a zip; unpack other archives",
            id="text",
        ),
    ],
)
def test_a_file_that_is_no_zip_is_refused_by_what_it_is(make, message, tmp_path):
    path = tmp_path / "source.zip"
    make(path)
    with pytest.raises(DatasetError, match=message) as caught, open_listing(path):
        pass
    assert str(caught.value).startswith(str(path))


def test_a_named_pipe_is_refused_without_waiting(tmp_path):
    named_pipe(tmp_path)
    with (
        pytest.raises(DatasetError, match="neither a folder nor a file"),
        open_listing(tmp_path / "pipe.png"),
    ):
        pass


@pytest.mark.parametrize("above", ["", "photos/"], ids=["outermost", "below-another"])
def test_splits_are_not_learned_as_classes(above, tmp_path):
    names = [f"{above}{split}/cat/1.png" for split in ("val", "train")]
    folder = fill(tmp_path / "folder", names)
    with pytest.raises(DatasetError) as caught, open_listing(folder):
        pass
    assert str(caught.value) == (
        f"{folder}: its folders {above}train and {above}val are splits of one data set, not "
        f"classes: give {folder}/{above}train, or rename them to use the images of all"
    )
    assert names_in(folder / above / "train") == ["cat/1.png"]


def test_splits_in_a_zip_are_to_be_packed_alone(tmp_path):
    path = zip_of(tmp_path / "a.zip", ["trainA/1.jpg", "trainB/1.jpg", "testA/1.jpg"])
    with pytest.raises(DatasetError, match="pack trainA or trainB alone, or rename"):
        names_in(path)
