"""The loop, the steps of a batch, and what is watched while a run trains."""
