"""The doctor: whether a run is healthy, and what to change if it is not."""
