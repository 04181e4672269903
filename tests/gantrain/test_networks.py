import pytest
import torch

from gantrain.networks import count_parameters, create_networks
from gantrain.networks.dcgan import Discriminator, Generator, pyramid, widths


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", range(8, 129, 4))
def test_every_multiple_of_four_has_networks_of_its_size(size: int, channels: int):
    generator = Generator(size, channels, latent_dim=5, filters=2)
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    assert Discriminator(size, channels, filters=2)(images).shape == (3,)


@pytest.mark.parametrize("size", [8, 28, 32, 100, 124, 128])
def test_the_discriminator_mirrors_the_generators_maps(size: int):
    maps = {"generator": [], "discriminator": []}

    def record(network: str):
        return lambda _module, _inputs, output: maps[network].append(tuple(output.shape[1:]))

    generator, discriminator = Generator(size, 1, 5, 4), Discriminator(size, 1, 4)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(record("generator"))
    for module in discriminator.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.register_forward_hook(record("discriminator"))
    discriminator(generator(torch.randn(2, 5)))
    assert maps["generator"] == maps["discriminator"][::-1]
    assert [side for _, _, side in maps["discriminator"]] == pyramid(size)[1:]


def test_a_logit_depends_on_its_own_image_alone():
    discriminator = Discriminator(16, 3, filters=4)
    images = torch.randn(6, 3, 16, 16)
    together = discriminator(images)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in discriminator.modules())


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_first_signals_neither_vanish_nor_explode_at_the_largest_size(network: str):
    generator, discriminator = create_networks(
        image_size=128, channels=3, latent_dim=64, filters=8, seed=0
    )
    images = generator(torch.randn(16, 64))
    values = images if network == "generator" else discriminator(torch.randn(16, 3, 128, 128))
    assert 0.05 < values.std() < 5


def test_widths_double_down_to_eight_times():
    assert widths(128, 16) == [16, 32, 64, 128, 128, 128]
    assert widths(28, 64) == [64, 128, 256]


def test_first_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    shape = {"image_size": 8, "channels": 1, "latent_dim": 4, "filters": 2}
    before = torch.random.get_rng_state()
    one, again, other = (create_networks(**shape, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.project.weight, again.project.weight)
    assert not torch.equal(one.project.weight, other.project.weight)


def test_parameters_are_counted_as_keras_counts_them():
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    assert count_parameters(network) == {"total": 16 + 8 + 8, "trainable": 16 + 8}
