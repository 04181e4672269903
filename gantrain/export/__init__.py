"""From a trained generator to an artifact, at full precision or at a lower one."""
