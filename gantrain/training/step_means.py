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
        self._threshold = create_loss(loss).threshold
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._logits: dict[str, list[Tensor]] = {}

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
            judged = self._judge(logits["real_logits"], logits["fake_logits"])
            for name, mean in judged.items():
                self._count(name, mean, steps["real_logits"])
        if "generator_logits" in logits:
            error = 1 - torch.sigmoid(logits["generator_logits"])
            self._count("generator_error", error.mean(), steps["generator_logits"])

    def _judge(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        if self._threshold is None:
            real_right = fake_right = (real > fake).float().mean()
        else:
            real_right = (real > self._threshold).float().mean()
            fake_right = (fake < self._threshold).float().mean()
        error = (1 - torch.sigmoid(real)).mean() + torch.sigmoid(fake).mean()
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
