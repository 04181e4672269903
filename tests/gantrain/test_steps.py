"""Each step against the same mathematics written out by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy

from gantrain.config_rules import network_shape
from gantrain.networks import create_networks
from gantrain.optimizers import apply_gradients, set_rates, update_ema
from gantrain.presets import resolve
from gantrain.training.batches import random_latents
from gantrain.training.run_setup import create_state
from gantrain.training.steps import (
    Feed,
    discriminator_step,
    generate_fakes,
    generator_step,
    take_step,
)

BATCH = 6
CPU = torch.device("cpu")


def configure(preset: str, **more: object):
    values = {"image_size": 28, "channels": 1, "batch_size": BATCH, "flip": "off", **more}
    return resolve({"preset": preset, "data": "", "run_dir": "", **values})


def real_images(count: int = 3, size: int = 28) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.rand(BATCH, 1, size, size, generator=random) * 2 - 1 for _ in range(count)]


def train_steps(config, batches: list[torch.Tensor]):
    state = create_state(config, CPU, class_count=0)
    noise = torch.Generator().manual_seed(7)
    feed = Feed(torch.cat(batches), None, -1.0, slice(None))
    for indices in torch.arange(len(feed.examples)).split(BATCH):
        take_step(state, feed, indices[None], config, noise, noise)
    return state


def by_hand(config):
    """The same first weights, in plain training mode."""
    return create_networks(
        config.generator, config.discriminator, network_shape(config), seed=config.seed
    )


def assert_same(network: nn.Module, expected: nn.Module, lr: float) -> None:
    """Equal but for rounding, which adaptive optimizers magnify where a gradient is nearly zero."""
    for name, values in expected.named_parameters():
        difference = (network.get_parameter(name) - values).detach().abs() / lr
        assert difference.mean() < 1e-3, name
        assert difference.max() < 0.3, name


def probability(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(network(images))


ONES, ZEROS = torch.ones(BATCH), torch.zeros(BATCH)


def test_dcgan_2015_steps_as_in_the_example_of_pytorch():
    config = configure("dcgan-2015", filters=4)
    batches = real_images()
    state = train_steps(config, batches)
    generator, discriminator = by_hand(config)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    generator_adam = torch.optim.Adam(generator.parameters(), **adam)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), **adam)
    noise = torch.Generator().manual_seed(7)
    for reals in batches:
        discriminator.zero_grad()
        binary_cross_entropy(probability(discriminator, reals), ONES).backward()
        fakes = generator(random_latents(BATCH, 100, noise))
        binary_cross_entropy(probability(discriminator, fakes.detach()), ZEROS).backward()
        discriminator_adam.step()
        generator.zero_grad()
        binary_cross_entropy(probability(discriminator, fakes), ONES).backward()
        generator_adam.step()
    assert_same(state.generator, generator, config.lr)
    assert_same(state.discriminator, discriminator, config.lr)
    for name, values in generator.named_buffers():
        torch.testing.assert_close(state.generator.get_buffer(name), values)


def test_keras_mlp_steps_twice_on_fakes_made_in_inference_mode():
    config = configure("keras-mlp")
    batches = real_images()
    state = train_steps(config, batches)
    generator, discriminator = by_hand(config)
    adam = {"lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-7}
    generator_adam = torch.optim.Adam(generator.parameters(), **adam)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), **adam)
    noise = torch.Generator().manual_seed(7)
    for reals in batches:
        with torch.no_grad():
            fakes = generator.eval()(random_latents(BATCH, 100, noise))
        for images, labels in ((reals, ONES), (fakes, ZEROS)):
            discriminator_adam.zero_grad()
            binary_cross_entropy(probability(discriminator, images), labels).backward()
            discriminator_adam.step()
        generator_adam.zero_grad()
        fakes = generator.train()(random_latents(BATCH, 100, noise))
        binary_cross_entropy(probability(discriminator, fakes), ONES).backward()
        generator_adam.step()
    assert_same(state.generator, generator, config.lr)
    assert_same(state.discriminator, discriminator, config.lr)
    steps = {int(values["step"]) for values in state.discriminator_optimizer.state.values()}
    assert steps == {2 * len(batches)}
    norms = [m for m in state.generator.modules() if isinstance(m, nn.BatchNorm1d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {len(batches)}


def test_selu_dense_takes_one_step_on_fakes_labelled_0_and_reals_labelled_1():
    config = configure("selu-dense")
    batches = [images / 2 + 0.5 for images in real_images()]
    state = train_steps(config, batches)
    generator, discriminator = by_hand(config)
    rms = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7}
    generator_rms = torch.optim.RMSprop(generator.parameters(), **rms)
    discriminator_rms = torch.optim.RMSprop(discriminator.parameters(), **rms)
    noise = torch.Generator().manual_seed(7)
    for reals in batches:
        fakes = generator(random_latents(BATCH, 30, noise)).detach()
        labels = torch.cat([ZEROS, ONES])
        discriminator_rms.zero_grad()
        both = probability(discriminator, torch.cat([fakes, reals]))
        binary_cross_entropy(both, labels).backward()
        discriminator_rms.step()
        generator_rms.zero_grad()
        fakes = generator(random_latents(BATCH, 30, noise))
        binary_cross_entropy(probability(discriminator, fakes), ONES).backward()
        generator_rms.step()
    assert_same(state.generator, generator, config.lr)
    assert_same(state.discriminator, discriminator, config.lr)


def test_the_learning_rate_decays_as_in_keras_and_each_gradient_element_is_clipped():
    config = configure("selu-dense", lr=0.5, lr_decay=0.25, gradient_clip=1.0)
    state = create_state(config, CPU, class_count=0)
    weights = next(state.generator.parameters())
    seen = []
    for _ in range(3):
        for values in state.generator.parameters():
            values.grad = torch.full_like(values, -30.0)
        set_rates(state, config)
        apply_gradients(state.generator, state.generator_optimizer, config)
        assert torch.equal(weights.grad, torch.full_like(weights, -1.0))
        seen.append(state.generator_optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.5, 0.5 / 1.25, 0.5 / 1.5])


@pytest.mark.parametrize(("way", "steps"), [("two-steps", 2), ("separate", 1)])
def test_the_learning_rate_of_each_network_falls_with_its_own_updates(way: str, steps: int):
    more = {"discriminator_step": way, "discriminator_updates": 3, "generator_updates": 2}
    config = configure("dcgan", filters=4, loss="bce", lr=0.5, lr_decay=0.25, **more)
    state = create_state(config, CPU, class_count=0)
    for _ in range(2):
        set_rates(state, config)
    assert state.generator_optimizer.param_groups[0]["lr"] == 0.5 / (1 + 0.25 * 2)
    assert state.discriminator_optimizer.param_groups[0]["lr"] == 0.5 / (1 + 0.25 * 3 * steps)


def test_the_learning_rate_goes_on_falling_from_checkpoints_that_do_not_note_the_updates():
    config = configure("selu-dense", lr=0.5, lr_decay=0.25)
    state = create_state(config, CPU, class_count=0)
    for values in state.generator.parameters():
        values.grad = torch.ones_like(values)
    for _ in range(3):
        set_rates(state, config)
        apply_gradients(state.generator, state.generator_optimizer, config)
    saved = state.generator_optimizer.state_dict()
    for group in saved["param_groups"]:
        assert group.pop("updates") == 3  # 0.9.0 and before knew none
    resumed = create_state(config, CPU, class_count=0)
    resumed.generator_optimizer.load_state_dict(saved)
    set_rates(resumed, config)
    assert resumed.generator_optimizer.param_groups[0]["lr"] == 0.5 / 1.75


def test_weights_are_clipped_after_each_step_of_wgan():
    config = configure("dcgan", filters=4, loss="wasserstein", weight_clip=0.01)
    state = train_steps(config, real_images(1))
    largest = max(float(values.detach().abs().max()) for values in state.discriminator.parameters())
    assert math.isclose(largest, 0.01, rel_tol=1e-6)


def test_the_generator_step_moves_neither_weights_nor_statistics_of_the_discriminator():
    config = configure("keras-conv64", image_size=32, channels=1, filters=4)
    state = create_state(config, CPU, class_count=0)
    noise = torch.Generator().manual_seed(0)
    reals = torch.rand(BATCH, 1, 32, 32)
    before = {
        name: values.clone()
        for name, values in state.discriminator.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    fakes = generate_fakes(state, config, noise, with_gradient=True)
    generator_step(state, reals, fakes, config, noise)
    after = state.discriminator.state_dict()
    assert all(torch.equal(values, after[name]) for name, values in before.items())
    assert any("running" in name for name in before)
    norms = [m for m in state.discriminator.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    assert momenta == pytest.approx([0.01] * 8), "they move again in the discriminator's next step"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"loss": name}, id=name)
        for name in ("relativistic", "bce", "saturating", "least-squares", "hinge", "wasserstein")
    ]
    + [
        pytest.param({"loss": "wasserstein", "gradient_penalty_weight": 10.0}, id="wgan-gp"),
        pytest.param({"loss": "bce", "r1_weight": 1.0, "r2_weight": 1.0}, id="bce-r1-r2"),
        pytest.param({"loss": "hinge", "spectral_norm": True}, id="spectral-norm"),
        pytest.param({"loss": "bce", "label_smoothing": 0.1}, id="label-smoothing"),
        pytest.param({"discriminator_step": "separate"}, id="separate"),
        pytest.param(
            {"loss": "bce", "discriminator_step": "two-steps", "r1_weight": 1.0}, id="two-steps-r1"
        ),
    ],
)
def test_every_loss_teaches_the_discriminator_which_images_are_real(settings):
    config = configure(
        "dcgan",
        image_size=8,
        filters=8,
        latent_dim=4,
        **{"r1_weight": 0.01, "r2_weight": 0.01, **settings},
    )
    state = create_state(config, CPU, class_count=0)
    noise = torch.Generator().manual_seed(0)
    for _ in range(40):
        reals = torch.full((BATCH, 1, 8, 8), 0.8)
        fakes = generate_fakes(state, config, noise, with_gradient=False)
        results = discriminator_step(state, reals, fakes, config, noise)
    assert results["real_logits"].mean() > results["fake_logits"].mean()
    before = results["fake_logits"].mean()
    for _ in range(10):
        fakes = generate_fakes(state, config, noise, with_gradient=True)
        generator_step(state, reals, fakes, config, noise)
    fakes = generate_fakes(state, config, noise, with_gradient=False)
    assert state.discriminator(fakes).mean() > before, "the generator follows"


CLASSES = 5
LABELS = torch.tensor([4, 0, 0, 2, 4, 0])  # of a batch; 1 and 3 do not occur


def conditional_config(**more: object):
    sizes = {"image_size": 8, "filters": 4, "latent_dim": 4}
    penalties = {"r1_weight": 0.1, "r2_weight": 0.3}
    return configure("dcgan", conditional=True, **{**sizes, **penalties, **more})


def test_conditional_steps_pair_each_real_with_a_fake_of_its_class():
    config = conditional_config()
    batches = real_images(size=8)
    state = create_state(config, CPU, CLASSES)
    generator, discriminator = create_networks(
        "dcgan", "dcgan", network_shape(config, CLASSES), seed=config.seed
    )
    discriminator.eval()  # of PyTorch's own layers, which can be differentiated twice
    adam = {"lr": config.generator_rate, "betas": (0.0, 0.99)}
    generator_adam = torch.optim.Adam(generator.parameters(), **adam)
    discriminator_adam = torch.optim.Adam(discriminator.parameters(), **adam)
    noise, same_noise = (torch.Generator().manual_seed(7) for _ in range(2))
    for step, reals in enumerate(batches):
        labels = LABELS.roll(step)
        fakes = generate_fakes(state, config, noise, labels, with_gradient=False)
        discriminator_step(state, reals, fakes, config, noise, labels)
        fakes = generate_fakes(state, config, noise, labels, with_gradient=True)
        generator_step(state, reals, fakes, config, noise, labels)

        fakes = generator(random_latents(BATCH, 4, same_noise), labels).detach().requires_grad_()
        reals = reals.clone().requires_grad_()
        real_logits = discriminator(reals, labels)
        fake_logits = discriminator(fakes, labels)
        loss = torch.log1p(torch.exp(fake_logits - real_logits)).mean()
        for logits, images, weight in ((real_logits, reals, 0.1), (fake_logits, fakes, 0.3)):
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            loss = loss + weight / 2 * slope.square().sum((1, 2, 3)).mean()
        discriminator_adam.zero_grad()
        loss.backward()
        discriminator_adam.step()
        fakes = generator(random_latents(BATCH, 4, same_noise), labels)
        difference = discriminator(reals.detach(), labels) - discriminator(fakes, labels)
        generator_adam.zero_grad()
        torch.log1p(torch.exp(difference)).mean().backward()
        generator_adam.step()
    with torch.no_grad():  # it cancels in each pair, so its gradient is rounding alone
        discriminator.judge.bias.copy_(state.discriminator.judge.bias)
    assert_same(state.generator, generator, config.generator_rate)
    assert_same(state.discriminator, discriminator, config.generator_rate)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="joint"),
        pytest.param({"discriminator_step": "separate"}, id="separate"),
        pytest.param({"loss": "bce", "discriminator_step": "two-steps"}, id="two-steps"),
        pytest.param({"loss": "hinge", "spectral_norm": True}, id="spectral-norm"),
        pytest.param(
            {"loss": "wasserstein", "gradient_penalty_weight": 10.0, "r1_weight": 0.0}, id="wgan-gp"
        ),
    ],
)
def test_every_way_of_stepping_teaches_the_classes_that_occur_and_no_others(settings):
    config = conditional_config(**settings)
    state = create_state(config, CPU, CLASSES)
    noise = torch.Generator().manual_seed(0)
    (reals,) = real_images(1, size=8)
    fakes = generate_fakes(state, config, noise, LABELS, with_gradient=True)
    results = discriminator_step(state, reals, fakes, config, noise, LABELS)
    assert results["real_logits"].shape == (BATCH,)
    generator_step(state, reals, fakes, config, noise, LABELS)
    occurs = torch.bincount(LABELS, minlength=CLASSES) > 0
    assert torch.equal(state.generator.embed.weight.grad.abs().sum(1) > 0, occurs)
    if not config.spectral_norm:  # the largest singular value depends on all of them
        assert torch.equal(state.discriminator.embed.weight.grad.abs().sum(1) > 0, occurs)


def test_the_penalty_between_reals_and_fakes_is_that_of_their_class():
    config = conditional_config(
        loss="wasserstein", gradient_penalty_weight=10.0, r1_weight=0.0, r2_weight=0.0
    )
    state = create_state(config, CPU, CLASSES)
    with torch.no_grad():
        state.discriminator.embed.weight[4] *= 100  # steep for that class alone
    (reals,) = real_images(1, size=8)
    penalties = []
    for label in (0, 4):
        noise = torch.Generator().manual_seed(0)
        labels = torch.full((BATCH,), label)
        fakes = generate_fakes(state, config, noise, labels, with_gradient=False)
        before = {name: values.clone() for name, values in state.discriminator.state_dict().items()}
        results = discriminator_step(state, reals, fakes, config, noise, labels)
        state.discriminator.load_state_dict(before)
        penalties.append(float(results["gradient_penalty"]))
    assert penalties[1] > 100 * penalties[0]


@pytest.mark.parametrize(
    ("kind", "r1_weight", "r2_weight"),
    [
        pytest.param("joint", 0.1, 0.3, id="joint"),
        pytest.param("separate", 0.1, 0.3, id="separate"),
        pytest.param("two-steps", 0.1, 0.3, id="two-steps"),
        pytest.param("joint", 0.1, 0.0, id="r1-alone"),
        pytest.param("joint", 0.0, 0.3, id="r2-alone"),
    ],
)
def test_losses_and_penalties_have_their_weights_however_the_discriminator_steps(
    kind: str, r1_weight: float, r2_weight: float
):
    """With plain gradient descent, for Adam hides a factor of everything."""
    between = 0.0 if kind == "two-steps" else 10.0
    config = configure(
        "dcgan",
        image_size=8,
        filters=4,
        latent_dim=4,
        lr=0.01,
        loss="bce",
        r1_weight=r1_weight,
        r2_weight=r2_weight,
        gradient_penalty_weight=between,
        discriminator_step=kind,
        discriminator_loss_weight=0.25,
        label_smoothing=0.1,
    )
    state = create_state(config, CPU, class_count=0)
    weights = state.discriminator.parameters()
    state.discriminator_optimizer = torch.optim.SGD(weights, lr=0.01)
    _, discriminator = by_hand(config)
    discriminator.eval()  # of PyTorch's own layers, which can be differentiated twice
    descent = torch.optim.SGD(discriminator.parameters(), lr=0.01)
    reals, fakes = real_images(2, size=8)
    results = discriminator_step(state, reals, fakes, config, torch.Generator().manual_seed(7))

    def slopes(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.clone().requires_grad_()
        logits = discriminator(images)
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return logits, slope.flatten(1).norm(dim=1)

    penalties: list[torch.Tensor] = []  # of the reals, then of the fakes

    def half(images: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
        logits, slope = slopes(images)
        loss = binary_cross_entropy(torch.sigmoid(logits), labels)
        penalties.append(slope.square().mean())
        return 0.25 * loss + weight / 2 * penalties[-1]

    def descend(loss: torch.Tensor) -> None:
        descent.zero_grad()
        loss.backward()
        descent.step()

    if kind == "two-steps":
        descend(half(reals, 0.9 * ONES, r1_weight))
        descend(half(fakes, ZEROS, r2_weight))
    else:
        mix = torch.rand(BATCH, generator=torch.Generator().manual_seed(7))[:, None, None, None]
        _, slope = slopes(mix * reals + (1 - mix) * fakes)
        penalty = 10 * (slope - 1).square().mean()
        descend(half(reals, 0.9 * ONES, r1_weight) + half(fakes, ZEROS, r2_weight) + penalty)
    for name, expected in discriminator.named_parameters():
        values = state.discriminator.get_parameter(name)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    reported = torch.stack([results["r1_penalty"], results["r2_penalty"]])
    torch.testing.assert_close(reported, torch.stack(penalties).detach())


@pytest.mark.parametrize("preset", ["dcgan", "dcgan-2015"])
def test_images_and_logits_are_in_float32_whatever_the_products_are_in(preset: str):
    config = configure(preset, filters=4, precision="bf16", r1_weight=0.0, r2_weight=0.0)
    state = create_state(config, CPU, class_count=0)
    noise = torch.Generator().manual_seed(0)
    (reals,) = real_images(1)
    fakes = generate_fakes(state, config, noise, with_gradient=True)
    results = discriminator_step(state, reals, fakes, config, noise)
    results |= generator_step(state, reals, fakes, config, noise)
    assert {values.dtype for values in (fakes, *results.values())} == {torch.float32}


@pytest.mark.parametrize(
    ("seen", "half_life"), [(10_000, 60), (400, 20)], ids=["later on", "ramping up"]
)
def test_the_average_forgets_half_of_a_weight_in_its_half_life(seen: int, half_life: int):
    config = configure(
        "dcgan",
        filters=4,
        discriminator_updates=2,
        ema_half_life_images=60,
        ema_ramp_up=0.05,
    )
    state = create_state(config, CPU, class_count=0)
    for network, value in ((state.generator, 1.0), (state.generator_ema, 0.0)):
        for weights in network.parameters():
            nn.init.constant_(weights, value)
    state.images_seen = seen
    update_ema(state, config)
    expected = 1 - 0.5 ** (2 * BATCH / half_life)
    for weights in state.generator_ema.parameters():
        torch.testing.assert_close(weights.data, torch.full_like(weights, expected))
