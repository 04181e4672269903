"""Hides how long a batch in the event loop waits for company: while more arrives, and not for long.

gRPC takes one call a turn of the event loop, or one in several, off a connection where many wait.
"""

import time

# Measured with 64 calls under way: a server's CPU time for a call falls up to 8 turns and no
# further.
_MOST_PATIENT_TURNS = 8
_LONGEST_GROWTH = 0.005  # seconds
_LAST_TURN_LASTS = 64  # batches that stay alone, until none waits at all


class Growth:
    """Whether the rows that arrived are likely to be joined by others in the next turns."""

    def __init__(self) -> None:
        self._quiet_turns = self._seen_rows = 0  # turns since more rows than these had arrived
        self._patient_turns: float = 1  # so many quiet turns end the growth of a batch

    def goes_on(self, rows: int, admitted_at: float) -> bool:
        """Ask once a turn; `admitted_at` is when the first of the rows came, on time.monotonic."""
        if time.monotonic() > admitted_at + _LONGEST_GROWTH:
            return False
        self._quiet_turns = self._quiet_turns + 1 if self._seen_rows == rows else 0
        self._seen_rows = rows
        return self._quiet_turns < self._patient_turns

    def end(self) -> None:
        """The rows that were asked about are taken."""
        self._quiet_turns = self._seen_rows = 0

    def learn(self, *, alone: bool) -> None:
        """Where batches stay alone patience wears off; the first company brings it back."""
        if not alone:
            self._patient_turns = _MOST_PATIENT_TURNS
        elif self._patient_turns > 1:
            self._patient_turns -= 1
        else:
            self._patient_turns = max(0.0, self._patient_turns - 1 / _LAST_TURN_LASTS)
