import pytest
import torch

from gantrain.networks import product_limits
from gantrain.networks.product_limits import is_product_quicker, was_measured

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
MANY, FEW = 512 * 512 * 16, 128 * 64 * 16  # weights


@pytest.fixture(params=[True, False], ids=["intel", "others"])
def on_intel(request, monkeypatch):
    monkeypatch.setattr(product_limits, "is_from_intel", lambda: request.param)
    product_limits._limits.cache_clear()
    yield request.param
    product_limits._limits.cache_clear()


@pytest.mark.usefixtures("on_intel")
def test_many_weights_and_few_pixels_are_for_products_in_bfloat16():
    for way in ("halve", "double", "learn"):
        assert is_product_quicker(way, 2, MANY, BFLOAT16)
        assert not is_product_quicker(way, 16, MANY, BFLOAT16)


def test_in_float32_maps_are_made_by_products_where_mkl_is_quick(on_intel):
    assert is_product_quicker("halve", 2, MANY, FLOAT32) is on_intel
    assert is_product_quicker("double", 2, MANY, FLOAT32) is on_intel
    assert is_product_quicker("learn", 2, MANY, FLOAT32)


def test_on_intel_few_weights_are_for_onednn(on_intel):
    for dtype in (FLOAT32, BFLOAT16):
        assert is_product_quicker("double", 2, FEW, dtype) is (dtype == BFLOAT16 and not on_intel)


@pytest.mark.usefixtures("on_intel")
def test_of_other_precisions_nothing_is_known():
    for dtype in (torch.float64, torch.float16):
        assert not was_measured(dtype)
        assert not is_product_quicker("learn", 2, MANY, dtype)
