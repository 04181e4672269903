"""Hides for which layers matrix products are quicker than oneDNN's convolutions, by processor.

A product reads its weights once for the pixels of a whole batch, where oneDNN reads them anew for
each image: the more weights and the fewer pixels, the better is a product. In float32 it is MKL's,
which is quick on its maker's processors; in bfloat16 it is oneDNN's own. All limits were measured:
see docs/benchmarks-training.md.
"""

from functools import cache
from typing import Literal, NamedTuple

import torch

from gantrain.cpus import maker_and_family

# Small maps of large ones, large ones of small ones, the gradient of the weights.
Way = Literal["halve", "double", "learn"]


class _Limit(NamedTuple):
    side: int  # of small maps, at most
    weights: int = 0  # of the kernel, at least


# A product is taken where one of the limits holds.
_Limits = dict[tuple[Way, torch.dtype], tuple[_Limit, ...]]

_FLOAT32, _BFLOAT16 = torch.float32, torch.bfloat16
# A Xeon with AVX-512, VNNI and AMX; 64 and 128 images, one thread and two.
_ON_INTEL: _Limits = {
    ("halve", _FLOAT32): (_Limit(4, 2**19),),
    ("halve", _BFLOAT16): (_Limit(2, 2**19), _Limit(4, 2**20)),
    ("double", _FLOAT32): (_Limit(4, 2**20),),
    ("double", _BFLOAT16): (_Limit(4, 2**20),),
    ("learn", _FLOAT32): (_Limit(3), _Limit(4, 2**19)),
    ("learn", _BFLOAT16): (_Limit(8),),
}
# A Zen 4 with AVX-512, VNNI and bf16; 64 and 128 images, one thread and two.
_ON_ZEN_4: _Limits = {
    ("halve", _FLOAT32): (_Limit(2, 2**22),),
    ("halve", _BFLOAT16): (_Limit(2, 2**19),),
    ("double", _FLOAT32): (_Limit(2, 2**22),),
    ("double", _BFLOAT16): (_Limit(2, 2**22),),
    ("learn", _FLOAT32): (_Limit(3), _Limit(4, 2**22)),
    ("learn", _BFLOAT16): (_Limit(4),),
}
# A Zen 5 with AVX-512, VNNI and bf16; 64 and 128 images, one thread and two.
_ON_ZEN_5: _Limits = {
    ("halve", _FLOAT32): (_Limit(2, 2**22),),
    ("halve", _BFLOAT16): (_Limit(2), _Limit(3, 2**19), _Limit(4, 2**20)),
    ("double", _BFLOAT16): (_Limit(2, 2**19), _Limit(3, 2**21), _Limit(4, 2**22)),
    ("learn", _BFLOAT16): (_Limit(8),),
}
# That Zen 5 with PyTorch and oneDNN held to AVX2; 16 and 64 images. There bf16 is never worth it.
_WITHOUT_AVX512: _Limits = {
    ("double", _BFLOAT16): (_Limit(4),),
    ("learn", _FLOAT32): (_Limit(4),),
    ("learn", _BFLOAT16): (_Limit(8),),
}
# What is quicker on all those with AVX-512.
_ELSEWHERE: _Limits = {
    ("halve", _FLOAT32): (_Limit(2, 2**22),),
    ("halve", _BFLOAT16): (_Limit(2, 2**19),),
    ("double", _BFLOAT16): (_Limit(2, 2**22),),
    ("learn", _BFLOAT16): (_Limit(4),),
}


def was_measured(dtype: torch.dtype) -> bool:
    """Whether anything is known of maps in this precision."""
    return dtype in (_FLOAT32, _BFLOAT16)


def is_product_quicker(way: Way, side: int, weights: int, dtype: torch.dtype) -> bool:
    """Whether a layer of so many weights is better worked out by products, on this machine's CPU.

    `side` is that of the smaller maps, in pixels.
    """
    limits = _limits().get((way, dtype), ())
    return any(side <= limit.side and weights >= limit.weights for limit in limits)


@cache
def _limits() -> _Limits:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # so Zen 3, of one family with Zen 4
        return _WITHOUT_AVX512
    measured = {
        ("GenuineIntel", 6): _ON_INTEL,
        ("AuthenticAMD", 25): _ON_ZEN_4,
        ("AuthenticAMD", 26): _ON_ZEN_5,
    }
    return measured.get(maker_and_family(), _ELSEWHERE)
