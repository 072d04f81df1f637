"""Counter-based random numbers as plain tensor operations: the same words and normals on every device.

A counter-based generator is a function of (key, counter) without state, so the value at a voxel can be asked for in any
order, any batch and any window (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The normals use
only additions, multiplications, divisions and square roots, each rounded as IEEE 754 says, and no fused operation:
library sines and logarithms differ in the last bit between devices and between the body and the tail of a vectorised
loop, and would make a voxel's noise depend on its batch mates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_SQRT_HALF_BITS = 0x3F3504F3  # float32 bits of sqrt(1/2)

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor], rounds: int = 10) -> Words:
    """Philox4x32: four random 32-bit words for each counter of four 32-bit words and key of two (Salmon et al. 2011).

    All tensors int64 with values 0..2^32-1, broadcast against each other; the results have the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    shape = torch.broadcast_shapes(*(word.shape for word in (*counter, *key)))
    for _ in range(rounds):
        # A 32 x 32 bit product wraps in int64, yet its low and (shifted, masked) high words come out right.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0 = _mixed_high_word(p1, c1, k0, shape)
        c2 = _mixed_high_word(p0, c3, k1, shape)
        c1, c3 = p1, p0  # their high words are cut off by the mask of the next round
        k0 = (k0 + _KEY_STEPS[0]) & MASK32
        k1 = (k1 + _KEY_STEPS[1]) & MASK32
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1 & MASK32, c2, c3 & MASK32)
    return c0, c1, c2, c3


def _mixed_high_word(product: Tensor, word: Tensor, key: Tensor, shape: torch.Size) -> Tensor:
    """High word of a product, exclusive-or another word and the key; in place once the product has the full shape."""
    high = product >> 32
    if high.shape != shape:
        return (high ^ word ^ key) & MASK32
    return high.bitwise_xor_(word).bitwise_xor_(key).bitwise_and_(MASK32)


def split_key(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit key words of (any shape) int64 keys."""
    return keys & MASK32, (keys >> 32) & MASK32


def normals(word_a: Tensor, word_b: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals (float32) from two random 32-bit words (int64), by Box and Muller 1958."""
    radius = _radius(word_a)
    # Bit 30 picks the sign of both, bit 31 exchanges them, the 30 bits below turn within a quarter circle.
    radius = torch.where((word_b & (1 << 30)) != 0, -radius, radius)
    sine, cosine = _sine_cosine(((word_b & ((1 << 30) - 1)) - (1 << 29)).float() * (math.pi / 2 / (1 << 30)))
    swap = word_b >= 1 << 31
    return radius * torch.where(swap, sine, cosine), radius * torch.where(swap, cosine, sine)


def _radius(word: Tensor) -> Tensor:
    """``sqrt(-2 ln u)`` with ``u = (word + 1) / 2^32``: 0 to 6.66."""
    bits = (word + 1).float().view(torch.int32) - _SQRT_HALF_BITS
    exponent = (bits >> 23) - 32  # u = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2))
    mantissa = ((bits & 0x7FFFFF) + _SQRT_HALF_BITS).view(torch.float32)
    s = (mantissa - 1) / (mantissa + 1)  # ln m = 2 atanh(s) = 2 (s + s^3/3 + s^5/5 + ...), |s| < 0.172
    log_mantissa = _polynomial(s * s, (2, 2 / 3, 2 / 5, 2 / 7, 2 / 9)) * s
    return ((exponent.float() * math.log(2) + log_mantissa) * -2).clamp_(min=0).sqrt_()


def _sine_cosine(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine by their Taylor series, to float32 rounding for |angle| <= pi/4."""
    square = angle * angle
    sine = _polynomial(square, (1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880)) * angle
    return sine, _polynomial(square, (1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800))


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """``sum_i coefficients[i] x^i`` by Horner, every product and sum rounded on its own."""
    result = x * coefficients[-1]
    for coefficient in reversed(coefficients[1:-1]):
        result.add_(coefficient).mul_(x)
    return result.add_(coefficients[0])
