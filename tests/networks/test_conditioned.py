"""What a network is told of the noise-free image is a short code, and nothing of it comes in another way."""

from __future__ import annotations

import pytest
import torch

from anodiff.networks import DiT, ImageConditioned, UNet


def network(dims: int, kind: str = "unet", classes: int = 0) -> UNet | DiT:
    torch.manual_seed(0)
    made: UNet | DiT
    if kind == "unet":
        made = UNet(1, dims=dims, channels=(8, 16), blocks=1, attention=(False, True), head_channels=8, classes=classes)
    else:
        made = DiT(1, dims=dims, patch=4, width=16, depth=2, head_channels=8, classes=classes)
    for parameter in made.parameters():
        if parameter.ndim > 1 and not parameter.any():  # layers that start at zero would hide the rest
            torch.nn.init.normal_(parameter, std=0.05)
    return made.eval()


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_image_shifts_the_embedding_and_nothing_else(dims: int, kind: str) -> None:
    inner = network(dims, kind)
    whole = ImageConditioned(inner, 1, code=5).eval()
    size = (8,) * dims
    noisy, image, level = torch.randn(3, 1, *size), torch.rand(3, 1, *size), torch.tensor([0.1, 0.5, 1.0])
    both = torch.cat([noisy, image], dim=1)
    shift = whole.project(torch.nn.functional.silu(whole.encoder(image)))
    assert shift.shape == (3, inner.embedding.width)
    assert torch.equal(whole(both, level), inner(noisy, level, None, shift))
    for ours, theirs in zip(whole.features(both, level), inner.features(noisy, level, None, shift), strict=True):
        assert torch.equal(ours, theirs)
    other = torch.cat([noisy, image.flip(-1) * 0.5], dim=1)
    assert not torch.allclose(whole(both, level), whole(other, level), atol=1e-6)
    torch.nn.init.zeros_(whole.project.weight)
    torch.nn.init.zeros_(whole.project.bias)
    assert torch.equal(whole(other, level), inner(noisy, level))


def test_images_of_one_code_give_one_answer() -> None:
    """The code of 5 numbers is all that passes: whatever else differs between two images is not known."""
    whole = ImageConditioned(network(2), 2, code=5).eval()
    whole.encoder.forward = lambda image: image.mean(dim=(1, 2, 3))[:, None].expand(-1, 5)  # type: ignore[method-assign]
    noisy, image = torch.randn(2, 1, 8, 8), torch.rand(2, 2, 8, 8)
    shuffled = image.flatten(2)[:, :, torch.randperm(64)].reshape(image.shape)
    level = torch.tensor([0.5, 0.5])
    torch.testing.assert_close(
        whole(torch.cat([noisy, image], dim=1), level), whole(torch.cat([noisy, shuffled], dim=1), level)
    )


def test_classes_are_those_of_the_network_within() -> None:
    whole = ImageConditioned(network(2, classes=3), 1, code=5).eval()
    assert whole.classes == 3
    x, level = torch.randn(2, 2, 8, 8), torch.tensor([0.5, 0.5])
    first, second = (whole(x, level, torch.tensor([label, label])) for label in (0, 1))
    assert not torch.allclose(first, second, atol=1e-7)


def test_the_encoder_learns_with_the_network() -> None:
    whole = ImageConditioned(network(2), 1, code=5)
    whole(torch.randn(2, 2, 8, 8), torch.tensor([0.5, 0.5])).square().sum().backward()
    for parameter in whole.encoder.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
