import pytest

from gantrain.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(RuntimeError("one\ntwo"), "one", id="several-lines"),
        pytest.param(RuntimeError("\n one\n"), "one", id="blank-line-first"),
        pytest.param(MemoryError(), "MemoryError", id="no-text"),
        pytest.param(ValueError(" \n"), "ValueError", id="blank-text"),
    ],
)
def test_an_error_is_told_in_one_line_by_its_class_if_it_says_nothing(error: Exception, told: str):
    assert first_line(error) == told
