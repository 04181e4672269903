import pytest

from gantrain.data.class_folders import classes_by_folder, find_splits, find_strays


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        pytest.param(["cat/1.png", "dog/1.png"], ["cat", "dog"], id="folders"),
        pytest.param(["cat/a/1.png", "dog/1.png"], ["cat", "dog"], id="deeper-folders"),
        pytest.param(["x/y/cat/1.png", "x/y/dog/1.png"], ["cat", "dog"], id="shared-folders"),
        pytest.param(["cat/1.png", "dog/1.png", "2.png"], None, id="one-outside"),
        pytest.param(["cat/1.png", "cat/2.png"], None, id="one-folder"),
        pytest.param(["/cat/1.png", "dog/1.png"], ["cat", "dog"], id="from-the-root"),
        pytest.param(["../cat/1.png", "dog/1.png"], ["cat", "dog"], id="from-above"),
        pytest.param(["/1.png", "../2.png"], None, id="no-folders-that-have-a-name"),
        pytest.param(["1.png", "2.png"], None, id="no-folders"),
        pytest.param([], None, id="no-files"),
    ],
)
def test_folders_are_classes_only_where_every_image_lies_in_one(names, classes):
    assert classes_by_folder(names) == classes


@pytest.mark.parametrize(
    ("names", "strays"),
    [
        pytest.param(["cat/1.png", "dog/1.png", "2.png"], ["2.png"], id="one-outside"),
        pytest.param(["x/cat/1.png", "x/2.png", "x/dog/1.png"], ["x/2.png"], id="shared-folders"),
        pytest.param(["x/cat/1.png", "x/dog/1.png", "2.png"], ["2.png"], id="above-a-shared-one"),
        pytest.param(["cat/1.png", "dog/1.png"], [], id="classes"),
        pytest.param(["1.png", "rest/2.png"], [], id="one-folder"),
        pytest.param(["1.png", "2.png"], [], id="no-folders"),
        pytest.param([], [], id="no-files"),
    ],
)
def test_strays_are_what_keeps_folders_from_being_classes(names, strays):
    assert find_strays(names) == strays


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        pytest.param(
            ["test/cat/1.png", "train/cat/1.png"], {"test": False, "train": True}, id="with-classes"
        ),
        pytest.param(["Train/1.png", "VALID/1.png"], {"Train": True, "VALID": False}, id="flat"),
        pytest.param(
            ["x/y/test1/1.png", "x/y/train/1.png"],
            {"x/y/test1": False, "x/y/train": True},
            id="shared-folders",
        ),
        pytest.param(
            ["seg_pred/1.jpg", "seg_test/a/2.jpg", "seg_train/a/3.jpg"],
            {"seg_pred": False, "seg_test": False, "seg_train": True},
            id="words-of-names",
        ),
        pytest.param(
            ["trainA/1.jpg", "testB/1.jpg"], {"trainA": True, "testB": False}, id="two-domains"
        ),
        pytest.param(
            ["test/1.png", "train/1.png", "logo.png"],
            {"test": False, "train": True},
            id="with-a-stray",
        ),
        pytest.param(["bus/1.png", "plane/1.png", "train/1.png"], {}, id="a-class-of-trains"),
        pytest.param(["test tube/1.png", "train/1.png", "vase/1.png"], {}, id="one-other"),
        pytest.param(["trainee/1.png", "tester/1.png"], {}, id="longer-words"),
        pytest.param(["train/1.png", "training/1.png"], {}, id="none-held-out"),
        pytest.param(["train/1.png", "train/2.png"], {}, id="one-folder"),
        pytest.param(["1.png"], {}, id="no-folders"),
        pytest.param([], {}, id="no-files"),
    ],
)
def test_folders_are_splits_where_all_are_named_as_such(names, splits):
    assert find_splits(names) == splits
