"""Hides how the results of many steps become the numbers of one row of metrics."""

import torch
from torch import Tensor

from gantrain.losses import create_loss

_KEPT_STEPS = 256  # logits of so many steps are kept before they are summed up


class StepMeans:
    """Means over steps since last taken: losses, penalties, what the discriminator made of it all.

    Logits are kept as they are and looked at once in many steps, so that a step of a small network
    does not pay for a dozen more operations. Nothing leaves the device before the end.
    """

    def __init__(self, loss: str) -> None:
        self._loss = create_loss(loss)
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._logits: dict[str, list[Tensor]] = {}
        self._usual_real: Tensor | float = 0.0  # newest mean of the reals' logits

    def add(self, results: dict[str, Tensor]) -> None:
        """Count one step's results: scalars, and logits [batch]."""
        for name, value in results.items():
            if value.dim():
                self._logits.setdefault(name, []).append(value)
            else:
                self._count(name, value)
        if any(len(kept) >= _KEPT_STEPS for kept in self._logits.values()):
            self._sum_up()

    def take(self) -> dict[str, float]:
        """Return the means and start over."""
        self._sum_up()
        means = {name: total.item() / self._counts[name] for name, total in self._totals.items()}
        self._totals, self._counts = {}, {}
        return means

    def _count(self, name: str, mean: Tensor, steps: int = 1) -> None:
        """Count a value of one step, or the mean of several."""
        self._totals[name] = self._totals.get(name, 0) + mean * steps
        self._counts[name] = self._counts.get(name, 0) + steps

    def _sum_up(self) -> None:
        steps = {name: len(kept) for name, kept in self._logits.items()}  # all of one batch size
        logits = {name: torch.cat(kept) for name, kept in self._logits.items()}
        self._logits = {}
        if "real_logits" in logits:
            self._usual_real = logits["real_logits"].mean()
            judged = self._judge(
                logits["real_logits"].view(steps["real_logits"], -1),
                logits["fake_logits"].view(steps["real_logits"], -1),
            )
            for name, mean in judged.items():
                self._count(name, mean, steps["real_logits"])
        if "generator_logits" in logits:
            fake = logits["generator_logits"]
            if self._loss.threshold is None:
                fake = fake - self._usual_real
            error = 1 - self._loss.score(fake)
            self._count("generator_error", error.mean(), steps["generator_logits"])

    def _judge(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """What the logits [steps, batch] of reals and of fakes say of the discriminator.

        Where a loss only compares, its belief is that of the relativistic average discriminator:
        each logit is held against the mean of the other kind in its step, the generator's against
        that of the steps summed up (Jolicoeur-Martineau, "The relativistic discriminator", 2018).
        """
        real_belief, fake_belief = real, fake
        threshold, score = self._loss.threshold, self._loss.score
        if threshold is None:
            real_right = fake_right = (real > fake).float().mean()
            real_belief = real - fake.mean(1, keepdim=True)
            fake_belief = fake - real.mean(1, keepdim=True)
        else:
            real_right = (real > threshold).float().mean()
            fake_right = (fake < threshold).float().mean()
        error = (1 - score(real_belief)).mean() + score(fake_belief).mean()
        return {
            "discriminator_accuracy_real": real_right,
            "discriminator_accuracy_fake": fake_right,
            "discriminator_error": error / 2,
            "real_logits": real.mean(),
            "fake_logits": fake.mean(),
            "logit_size": (real.abs().mean() + fake.abs().mean()) / 2,
        }


def gradient_norm(network: torch.nn.Module) -> Tensor:
    """L2 norm of the gradients that the last update left behind, a scalar."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)
