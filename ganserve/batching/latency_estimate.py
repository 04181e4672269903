"""An estimate of how long a model call will take, from those before."""

_SLOWER_SHARE = 0.1  # of a call that took longer than expected: most such were interrupted


class LatencyEstimate:
    """The time of model calls by their size; sizes count as the next power of two.

    Attributes:
        seconds_per_row: of the last call; a guess until there is one.
    """

    def __init__(self) -> None:
        self.seconds_per_row = 0.01
        self._seconds: dict[int, float] = {}  # by the exponent of the power of two

    def update(self, rows: int, seconds: float) -> None:
        """Learn from a call that ended."""
        self.seconds_per_row = seconds / rows
        power = (rows - 1).bit_length()
        before = self._seconds.get(power, seconds)
        self._seconds[power] = min(seconds, before + _SLOWER_SHARE * (seconds - before))

    def expect(self, rows: int) -> float:
        """Seconds that a call should take; infinity before the first one.

        A size that was never seen is taken for twice the next smaller one, which is too long.
        """
        power = (rows - 1).bit_length()
        known = [size for size in self._seconds if size <= power]
        if not known:
            return float("inf")
        return self._seconds[max(known)] * 2.0 ** (power - max(known))
