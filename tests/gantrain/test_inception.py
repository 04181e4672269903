"""The Inception network itself is not here; a small one of the same interface takes its place."""

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason="needs the extra `fid`")

from gantrain.errors import RunError
from gantrain.evaluation.distances import frechet_distance, kernel_distance
from gantrain.evaluation.inception import DOWNLOAD, Inception


class StandIn(torch.nn.Module):
    """Four features of each channel; logits are ten times some of them."""

    def forward(
        self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        if return_features:
            return pooled
        assert no_output_bias
        return torch.softmax(100 * pooled[:, :8], 1)


def save(network: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(path)
    return path


@pytest.fixture
def network(tmp_path: Path) -> Inception:
    return Inception(str(save(StandIn(), tmp_path / "inception.pt")))


def noise(count: int, seed: int, highest: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest, (count, 3, 8, 8), dtype=np.uint8)


def test_features_are_those_of_the_network_whatever_the_chunk(network: Inception):
    images = noise(70, 0)
    features, logits = network.look(images)
    assert features.shape == (70, 12)
    assert logits.shape == (70, 8)
    alone, _ = network.look(images[69:])
    assert torch.equal(alone[0], features[69])
    halves = images[:, :, :4, :4].reshape(70, 3, -1).mean(2) / 255
    np.testing.assert_allclose(features.reshape(70, 3, 4)[:, :, 0], halves, rtol=1e-5)


def test_the_logits_of_a_network_that_tells_probabilities_make_them_again(network: Inception):
    images = noise(5, 0)
    features, logits = network.look(images)
    torch.testing.assert_close(torch.softmax(logits, 1), torch.softmax(100 * features[:, :8], 1))


class Sure(torch.nn.Module):
    """Leaves all classes but one a probability that float32 cannot hold."""

    def forward(
        self, images: torch.Tensor, return_features: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        values = images.float().flatten(1)[:, :4]
        assert return_features != no_output_bias
        return values if return_features else torch.softmax(values, 1)


def test_a_network_that_is_quite_sure_has_an_inception_score(tmp_path: Path):
    network = Inception(str(save(Sure(), tmp_path / "sure.pt")))
    images = np.zeros((400, 3, 8, 8), np.uint8)
    images[range(400), 0, 0, np.arange(400) % 4] = 255
    features, logits = network.look(images)
    found = network.measure(features, features, logits)
    assert found["inception_score"] == pytest.approx(4, rel=0.1)


def test_grey_images_are_repeated_over_the_colours(network: Inception):
    grey = noise(3, 0)[:, :1]
    assert torch.equal(network.look(grey)[0], network.look(np.repeat(grey, 3, axis=1))[0])


def test_the_librarys_distances_agree_with_our_own_on_the_same_features(network: Inception):
    real, _ = network.look(noise(400, 0))
    fake, logits = network.look(noise(400, 1, highest=200))
    found = network.measure(real, fake, logits)
    assert found["frechet_inception_distance"] == pytest.approx(
        frechet_distance(real, fake), rel=1e-4
    )
    mean, spread = kernel_distance(real, fake, subset_size=400)
    assert found["kernel_inception_distance"] == pytest.approx(mean, abs=3 * spread)
    assert 1 < found["inception_score"] < 8
    assert network.measure(real, fake, logits) == found, "the same each time"


def test_the_inception_score_of_one_sure_class_each_is_their_number(network: Inception):
    logits = 100 * torch.eye(8).repeat(100, 1)
    found = network.measure(torch.rand(50, 12), torch.rand(50, 12), logits)
    assert found["inception_score"] == pytest.approx(8, rel=0.05)


def test_weights_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(RunError, match=r"--inception .*none\.pt: no such file; name one, or"):
        Inception(str(tmp_path / "none.pt"))


def test_a_network_with_another_interface_is_refused(tmp_path: Path):
    path = save(torch.nn.Identity(), tmp_path / "other.pt")
    with pytest.raises(RunError, match="expected a network that takes return_features"):
        Inception(str(path)).look(noise(2, 0))


def test_weights_without_their_library_say_what_to_install(tmp_path: Path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no weights")
    missing = importlib.util.find_spec("torch_fidelity") is None
    wanted = "install the extra `fid`" if missing else "cannot be used"
    with pytest.raises(RunError, match=wanted):
        Inception(str(path))


class FidelityStandIn(torch.nn.Module):
    """As torch-fidelity 0.4's `FeatureExtractorInceptionV3`, with 12 features and 8 logits."""

    downloads = True

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        feature_extractor_internal_dtype: str | None = None,
    ) -> None:
        super().__init__()
        assert name
        assert set(features_list) <= {"64", "192", "768", "2048", "logits_unbiased", "logits"}
        assert feature_extractor_internal_dtype is None
        self.features_list = features_list
        self.fc = torch.nn.Linear(12, 8)
        self.dropout = torch.nn.Dropout(0.5)  # would show a network that was left to learn
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path))
        elif not self.downloads:
            raise OSError("<urlopen error [Errno -2] Name or service not known>\nand more")

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        assert x.dtype == torch.uint8
        assert x.dim() == 4
        assert x.shape[1] == 3
        pooled = torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
        logits = self.fc(self.dropout(pooled))
        found = {"2048": pooled, "logits": logits, "logits_unbiased": logits - self.fc.bias}
        return tuple(found[name] for name in self.features_list)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> type[FidelityStandIn]:
    package = ModuleType("torch_fidelity")
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FidelityStandIn
    for each in (package, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return FidelityStandIn


def test_torch_fidelitys_weights_are_its_librarys_to_use(
    fidelity: type[FidelityStandIn], tmp_path: Path
):
    network = fidelity("any", ["2048", "logits_unbiased"]).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    images = noise(40, 0)
    features, logits = Inception(str(tmp_path / "weights.pth")).look(images)
    with torch.no_grad():
        expected = network(torch.from_numpy(images))
    torch.testing.assert_close((features, logits), expected)
    assert Inception(DOWNLOAD).look(noise(3, 0))[1].shape == (3, 8)


def test_weights_that_cannot_be_had_say_so_in_one_line(
    fidelity: type[FidelityStandIn], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(fidelity, "downloads", False)
    with pytest.raises(
        RunError, match=r"could not be downloaded: <urlopen.*>; name a file of them"
    ):
        Inception(DOWNLOAD)
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        RunError, match=r"the weights cannot be used: Error\(s\) in loading"
    ) as told:
        Inception(str(tmp_path / "other.pth"))
    assert "\n" not in str(told.value)


def test_torch_fidelitys_own_network_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    library = pytest.importorskip(
        "torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity"
    )
    kind = library.FeatureExtractorInceptionV3
    path = tmp_path / "weights.pth"
    path.touch()
    with monkeypatch.context() as context:  # random weights, for the real ones are a download
        context.setattr(torch, "load", lambda *_, **__: {})
        context.setattr(kind, "load_state_dict", lambda *_: None)
        network = kind("random", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    features, logits = Inception(str(path)).look(noise(2, 0)[:, :1])
    assert features.shape == (2, 2048)
    assert logits.shape == (2, 1008)


def test_a_library_that_breaks_while_it_is_imported_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
):
    class Broken:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "torchmetrics.image.fid":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchmetrics.image.fid", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(
        RunError, match=r"torchmetrics cannot be used \(operator.*install the extra"
    ):
        Inception(DOWNLOAD)
