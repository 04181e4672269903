"""The precisions that an artifact may have, and how near to the trained generator each must be."""

from typing import Final, Literal

Precision = Literal["fp32", "fp16", "int8"]

MIN_PSNR: Final = 45.0  # dB from the float32 graph
FRECHET_SAMPLES: Final = 2000  # of each set of seeds that the change of the distance is measured on
