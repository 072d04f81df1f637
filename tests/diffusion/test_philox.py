"""Philox words against the known answers of Random123, and normals against the normal law."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from anodiff.diffusion.philox import normals, philox, split_key

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # file kat_vectors of Random123, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]) -> None:
    words = philox(
        tuple(torch.tensor([c]) for c in counter),  # type: ignore[arg-type]
        tuple(torch.tensor([k]) for k in key),  # type: ignore[arg-type]
    )
    assert tuple(int(w) for w in words) == answer


def test_words_broadcast_and_split_keys_keep_all_bits() -> None:
    keys = torch.tensor([2**62 + 5, 7, ONES + 1])
    low, high = split_key(keys)
    assert torch.equal(high << 32 | low, keys)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    words = philox((torch.arange(5).view(1, 5), zero, zero, zero), (low.view(3, 1), high.view(3, 1)))
    assert all(w.shape == (3, 5) and int(w.min()) >= 0 and int(w.max()) <= ONES for w in words)
    one = philox(tuple(torch.tensor([c]) for c in (4, 0, 0, 0)), (low[:1], high[:1]))  # type: ignore[arg-type]
    assert [int(w[0, 4]) for w in words] == [int(w) for w in one]


def test_normals_follow_the_normal_law() -> None:
    count = 1 << 17
    zero = torch.zeros(1, dtype=torch.int64)
    words = philox((torch.arange(count), zero, zero, zero), (zero + 3, zero))
    first, second = normals(words[0], words[1])
    both = torch.cat([first, second])
    assert stats.kstest(both.double().numpy(), "norm").pvalue > 1e-3
    assert abs(float((first * second).mean())) < 4.5 / math.sqrt(count)
    assert abs(float((first**2 * second**2).mean()) - 1) < 4.5 * math.sqrt(8 / count)
    assert float(both.abs().max()) > 4


def test_normals_are_box_muller_to_float_rounding() -> None:
    word_a = torch.tensor([0, 1, 12345, 2**31, 2**32 - 2**20, 3_000_000_000])
    word_b = torch.randint(0, 2**32, (6,), generator=torch.Generator().manual_seed(0))
    first, second = normals(word_a, word_b)
    radius = torch.sqrt(-2 * torch.log((word_a + 1).double() / 2**32))
    assert torch.allclose((first.double() ** 2 + second.double() ** 2).sqrt(), radius, rtol=1e-5)
    angles = torch.atan2(second.double(), first.double())
    uniform = torch.stack(normals(word_a[1:2].expand(40_000), torch.arange(40_000) * (2**32 // 40_000)))
    turned = torch.atan2(uniform[1], uniform[0])
    assert bool(torch.isfinite(angles).all())
    # Evenly spaced words give evenly spread angles: every 10 degrees of the circle gets its share.
    assert torch.allclose(torch.histc(turned, 36, -math.pi, math.pi), torch.full((36,), 40_000 / 36), rtol=0.01)
