from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from gantrain.export.onnx_graph import to_onnx
from gantrain.export.small_maps import lower_small_maps
from gantrain.latents import draw_latents
from gantrain.networks import Shape, create_networks
from gantrain.sampling import PixelGenerator, open_session, run_session

LATENT_DIM = 8


def graph_of(image_size: int, classes: int = 0, kind: str = "dcgan") -> onnx.ModelProto:
    """A generator whose sums of products, all of small integers, are exact in whatever order."""
    shape = Shape(image_size, 3, LATENT_DIM, filters=4, kernel_size=4, classes=classes)
    generator = create_networks(kind, "dcgan", shape, seed=0)[0].eval()
    torch.manual_seed(image_size)
    for values in generator.parameters():
        nn.init.uniform_(values, -1.5, 1.5)
        values.data.round_()
    for layer in generator.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0
    return to_onnx(PixelGenerator(generator).eval(), LATENT_DIM, classes)


def images_of(model: onnx.ModelProto, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
    labels = np.arange(len(latents)) % 3 if len(model.graph.input) == 2 else None
    return run_session(open_session(model.SerializeToString()), latents, labels)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("image_size", "classes"),
    [
        pytest.param(8, 0, id="2x2-to-4x4"),
        pytest.param(20, 0, id="2x2-to-5x5"),
        pytest.param(32, 3, id="labels"),
    ],
)
def test_the_smallest_map_is_doubled_by_products(image_size: int, classes: int):
    model = graph_of(image_size, classes)
    lowered = lower_small_maps(model)
    onnx.checker.check_model(lowered, full_check=True)
    gone = operators(model) - operators(lowered)
    assert gone == {"ConvTranspose": 1}
    assert (operators(lowered) - operators(model))["Gemm"] == 4
    latents = np.rint(draw_latents(np.arange(5, dtype=np.uint64), LATENT_DIM) * 2)
    expected = images_of(model, latents)
    assert len(np.unique(expected)) > 2, "images of nothing would prove nothing"
    assert np.array_equal(images_of(lowered, latents), expected)


def test_a_map_of_one_pixel_is_a_single_product():
    model = graph_of(8, kind="dcgan-2015")
    lowered = lower_small_maps(model)
    assert operators(model) - operators(lowered) == {"ConvTranspose": 1}
    assert operators(lowered) - operators(model) == {"Gemm": 1, "Reshape": 2}
    latents = np.rint(draw_latents(np.arange(5, dtype=np.uint64), LATENT_DIM) * 2)
    expected = images_of(model, latents)
    assert len(np.unique(expected)) > 2, "images of nothing would prove nothing"
    assert np.array_equal(images_of(lowered, latents), expected)


def test_larger_maps_are_left_as_they_are():
    model = graph_of(28)  # from 3x3
    assert lower_small_maps(model).graph.node == model.graph.node


@pytest.mark.parametrize("image_size", [12, 28], ids=["3x3-to-6x6", "3x3-to-7x7"])
def test_maps_of_3x3_with_many_weights_are_doubled_by_products(image_size: int):
    model = graph_of(image_size)
    sizes = {entry.name: np.prod(entry.dims) for entry in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "ConvTranspose")
    assert lower_small_maps(model, sizes[first.input[1]] + 1).graph.node == model.graph.node
    lowered = lower_small_maps(model, sizes[first.input[1]])
    onnx.checker.check_model(lowered, full_check=True)
    assert operators(model) - operators(lowered) == {"ConvTranspose": 1}
    latents = np.rint(draw_latents(np.arange(5, dtype=np.uint64), LATENT_DIM) * 2)
    expected = images_of(model, latents)
    assert len(np.unique(expected)) > 2, "images of nothing would prove nothing"
    assert np.array_equal(images_of(lowered, latents), expected)


def test_the_weights_are_not_more_than_they_were():
    model = graph_of(64)
    before, after = len(model.SerializeToString()), len(lower_small_maps(model).SerializeToString())
    assert after < before + 10_000
