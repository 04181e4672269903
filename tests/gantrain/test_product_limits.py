import pytest
import torch

from gantrain.networks import product_limits
from gantrain.networks.product_limits import is_product_quicker, was_measured

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
MANY, FEW = 512 * 512 * 16, 128 * 64 * 16  # weights
PROCESSORS = {
    "intel": ("GenuineIntel", 6, "AVX512"),
    "zen 4": ("AuthenticAMD", 25, "AVX512"),
    "zen 5": ("AuthenticAMD", 26, "AVX512"),
    "zen 3": ("AuthenticAMD", 25, "AVX2"),
    "another": ("AnotherMaker", 7, "AVX512"),
    "not known": ("", 0, "DEFAULT"),
}
WITH_AVX512 = [name for name, (*_, capability) in PROCESSORS.items() if capability == "AVX512"]


@pytest.fixture
def choose_processor(monkeypatch):
    def choose(name):
        *processor, capability = PROCESSORS[name]
        monkeypatch.setattr(product_limits, "maker_and_family", lambda: tuple(processor))
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        product_limits._limits.cache_clear()

    yield choose
    product_limits._limits.cache_clear()


@pytest.mark.parametrize("processor", PROCESSORS)
def test_many_weights_and_few_pixels_are_for_products_in_bfloat16(processor, choose_processor):
    choose_processor(processor)
    for way in ("halve", "double", "learn"):
        # As quick either way without AVX-512.
        taken = way != "halve" or processor in WITH_AVX512
        assert is_product_quicker(way, 2, MANY, BFLOAT16) is taken
        assert not is_product_quicker(way, 16, MANY, BFLOAT16)


@pytest.mark.parametrize(
    ("processor", "largest"),
    [
        pytest.param("intel", {"halve": 4, "double": 4, "learn": 4}, id="intel"),
        pytest.param("zen 4", {"halve": 2, "double": 2, "learn": 4}, id="zen 4"),
        pytest.param("zen 5", {"halve": 2, "double": 0, "learn": 0}, id="zen 5"),
        pytest.param("zen 3", {"halve": 0, "double": 0, "learn": 4}, id="zen 3"),
        pytest.param("another", {"halve": 2, "double": 0, "learn": 0}, id="another"),
        pytest.param("not known", {"halve": 0, "double": 0, "learn": 4}, id="not known"),
    ],
)
def test_in_float32_it_depends_on_the_processor_up_to_where(processor, largest, choose_processor):
    choose_processor(processor)
    for way, side in largest.items():
        chosen = [n for n in (2, 3, 4, 8) if is_product_quicker(way, n, MANY, FLOAT32)]
        assert max(chosen, default=0) == side


@pytest.mark.parametrize("processor", PROCESSORS)
def test_small_maps_of_few_weights_are_doubled_by_onednn_with_avx512(processor, choose_processor):
    choose_processor(processor)
    assert not is_product_quicker("double", 2, FEW, FLOAT32)
    assert is_product_quicker("double", 2, FEW, BFLOAT16) is (processor not in WITH_AVX512)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["fp32", "bf16"])
def test_on_an_unknown_processor_products_are_where_they_are_quicker_on_all_known(
    dtype, choose_processor
):
    cases = [
        (way, side, weights)
        for way in ("halve", "double", "learn")
        for side in (2, 3, 4, 8)
        for weights in (2**17, 2**19, 2**20, 2**21, 2**22)
    ]
    taken = {}
    for name in WITH_AVX512:
        choose_processor(name)
        taken[name] = {case for case in cases if is_product_quicker(*case, dtype)}
    elsewhere = taken.pop("another")
    assert elsewhere == set.intersection(*taken.values())


def test_the_gradient_of_few_weights_is_a_product_where_maps_are_smallest(choose_processor):
    choose_processor("zen 4")
    assert is_product_quicker("learn", 3, FEW, FLOAT32)
    assert not is_product_quicker("learn", 4, FEW, FLOAT32)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_of_other_precisions_nothing_is_known(processor, choose_processor):
    choose_processor(processor)
    for dtype in (torch.float64, torch.float16):
        assert not was_measured(dtype)
        assert not is_product_quicker("learn", 2, MANY, dtype)
