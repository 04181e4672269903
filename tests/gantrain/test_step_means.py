"""Tests of the numbers of a row: every step counts alike, however many there are."""

import math

import pytest
import torch

from gantrain.training.step_means import StepMeans


def test_means_are_over_the_steps_since_last_taken():
    means = StepMeans("bce")
    for value in (1.0, 3.0):
        means.add({"loss": torch.tensor(value)})
    assert means.take() == {"loss": 2.0}
    means.add({"loss": torch.tensor(7.0)})
    assert means.take() == {"loss": 7.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_step_that_is_not_finite_shows_in_the_mean(bad: float):
    means = StepMeans("bce")
    for value in (1.0, bad, 1.0):
        means.add({"loss": torch.tensor(value)})
    assert not math.isfinite(means.take()["loss"])


@pytest.mark.parametrize("steps", [1, 256, 257, 600])
def test_each_step_counts_alike_in_what_is_made_of_logits(steps: int):
    means = StepMeans("bce")
    for step in range(steps):
        right = torch.full((4,), 1.0 if step < 256 else -1.0)
        means.add({"real_logits": right, "fake_logits": -right, "generator_loss": right.mean()})
        means.add({"generator_logits": right})
    assert all(len(kept) < 256 for kept in means._logits.values()), "a long run fits into memory"
    row = means.take()
    share = min(steps, 256) / steps
    sigmoids = torch.sigmoid(torch.tensor([1.0, -1.0])).tolist()
    error = share * sigmoids[1] + (1 - share) * sigmoids[0]
    assert row == pytest.approx(
        {
            "generator_loss": 2 * share - 1,
            "discriminator_accuracy_real": share,
            "discriminator_accuracy_fake": share,
            "discriminator_error": error,
            "real_logits": 2 * share - 1,
            "fake_logits": 1 - 2 * share,
            "logit_size": 1.0,
            "generator_error": error,
        },
        abs=1e-5,
    )


def test_more_updates_of_one_network_than_of_the_other_count_by_themselves():
    means = StepMeans("relativistic")
    for step in range(100):
        for update in range(5):
            logits = torch.full((2,), float(5 * step + update))
            means.add({"real_logits": logits, "fake_logits": logits - 1})
        means.add({"generator_logits": torch.full((2,), 1e3 if step < 52 else -1e3)})
    row = means.take()
    assert row["real_logits"] == pytest.approx(249.5)
    assert row["generator_error"] == pytest.approx(0.48)


@pytest.mark.parametrize(
    ("loss", "real", "fake"),
    [
        pytest.param("bce", 1 / 2, 1 / 4, id="above-0"),
        pytest.param("hinge", 1 / 2, 1 / 4, id="hinge"),
        pytest.param("least-squares", 1 / 4, 3 / 4, id="above-a-half"),
        pytest.param("wasserstein", 1 / 4, 1 / 4, id="in-pairs"),
        pytest.param("relativistic", 1 / 4, 1 / 4, id="relativistic"),
    ],
)
def test_who_is_right_depends_on_where_a_loss_draws_the_line(loss: str, real: float, fake: float):
    means = StepMeans(loss)
    logits = {"real_logits": [0.9, 0.3, -0.2, -0.4], "fake_logits": [0.4, 0.8, 0.2, -0.1]}
    means.add({name: torch.tensor(values) for name, values in logits.items()})
    row = means.take()
    assert row["discriminator_accuracy_real"] == real
    assert row["discriminator_accuracy_fake"] == fake


@pytest.mark.parametrize(
    ("loss", "real", "fake"),
    [
        pytest.param("bce", 100.0, -100.0, id="bce"),
        pytest.param("hinge", 100.0, -100.0, id="hinge"),
        pytest.param("least-squares", 1.0, 0.0, id="least-squares"),
    ],
)
def test_a_discriminator_that_is_sure_and_right_has_no_error(loss: str, real: float, fake: float):
    means = StepMeans(loss)
    means.add({"real_logits": torch.full((4,), real), "fake_logits": torch.full((4,), fake)})
    means.add({"generator_logits": torch.full((4,), fake)})
    row = means.take()
    assert row["discriminator_error"] == pytest.approx(0.0, abs=1e-6)
    assert row["generator_error"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("loss", ["relativistic", "wasserstein"])
def test_the_error_of_a_loss_that_only_compares_is_the_same_wherever_its_logits_lie(loss: str):
    rows = []
    for shift in (0.0, 40.0):
        means = StepMeans(loss)
        for step in range(300):  # the critic's zero drifts
            real = torch.tensor([2.0, 4.0]) + shift + (step >= 150)
            means.add({"real_logits": real, "fake_logits": real - 3})
            means.add({"generator_logits": torch.tensor([3.0, 3.0]) + shift + (step >= 150)})
        rows.append(means.take())
    real, fake = torch.tensor([2.0, 4.0]) - 0.0, torch.tensor([-1.0, 1.0]) - 3.0
    error = (1 - torch.sigmoid(real)).mean() + torch.sigmoid(fake).mean()
    for row in rows:
        assert row["discriminator_error"] == pytest.approx(error.item() / 2, abs=1e-5)
        assert row["generator_error"] == pytest.approx(0.5, abs=0.1), "as real as the real ones"
