"""Foreign U-Nets inside a Denoiser give the clean image that their own library's scheduler derives from them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from anodiff.diffusion import Denoiser, make_schedule, wrap_diffusers, wrap_monai
from anodiff.diffusion.adapters import ForeignNetwork
from anodiff.errors import ConfigError

PREDICTIONS = [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")]
TIMESTEPS = (0, 1, 250, 700, 999)


def monai_unet(dims: int = 2) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    torch.manual_seed(0)
    net = DiffusionModelUNet(
        spatial_dims=dims,
        in_channels=1,
        out_channels=1,
        channels=(8, 8),
        attention_levels=(False, False),
        num_res_blocks=1,
        norm_num_groups=4,
        num_head_channels=4,
    )
    return awaken(net)


def diffusers_unet(diffusers, **options) -> nn.Module:
    torch.manual_seed(0)
    return awaken(
        diffusers.UNet2DModel(
            sample_size=16,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            layers_per_block=1,
            **options,
        )
    )


def awaken(net: nn.Module) -> nn.Module:
    """Fresh U-Nets end in a zero convolution, whose answer would hide the timestep."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.mark.parametrize(("ours", "theirs"), PREDICTIONS)
def test_monai_unet_and_scheduler(ours: str, theirs: str) -> None:
    from monai.networks.schedulers import DDIMScheduler

    scheduler = DDIMScheduler(1000, schedule="linear_beta", clip_sample=False, prediction_type=theirs)
    net = monai_unet()
    denoiser = Denoiser(wrap_monai(net), ours, schedule=make_schedule("vp-linear"), noise_input="timestep").eval()
    check(denoiser, lambda x, t: scheduler.step(net(x, torch.tensor([t])), t, x)[1], scheduler.add_noise)


@pytest.mark.parametrize(("ours", "theirs"), PREDICTIONS)
def test_diffusers_unet_and_scheduler(ours: str, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a development dependency")
    scheduler = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, prediction_type=theirs)
    scheduler.set_timesteps(1000)
    net = diffusers_unet(diffusers)
    denoiser = Denoiser(wrap_diffusers(net), ours, schedule=make_schedule("vp-linear"), noise_input="timestep").eval()
    check(denoiser, lambda x, t: scheduler.step(net(x, t).sample, t, x).pred_original_sample, scheduler.add_noise)


def check(denoiser: Denoiser, reference_clean, add_noise) -> None:
    """Their noisy image at their timestep, divided by alpha, is ours at sigma; both must see the same clean image."""
    torch.manual_seed(1)
    clean, noise = torch.rand(2, 1, 16, 16) * 2 - 1, torch.randn(2, 1, 16, 16)
    schedule = denoiser.schedule
    assert schedule is not None
    for t in TIMESTEPS:
        theirs = add_noise(clean, noise, torch.tensor([t, t]))
        alpha, sigma = schedule.alphas[t].float(), schedule.sigmas[t]
        assert torch.allclose(theirs / alpha, clean + sigma.float() * noise, rtol=2e-3, atol=2e-4)
        with torch.no_grad():
            expected, ours = reference_clean(theirs, t), denoiser(theirs / alpha, sigma)
        assert torch.allclose(ours, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_a_volume_network_of_monai() -> None:
    denoiser = Denoiser(
        wrap_monai(monai_unet(3)), "eps", schedule=make_schedule("vp-linear"), noise_input="timestep"
    ).eval()
    assert denoiser(torch.randn(2, 1, 8, 8, 8), 0.5).shape == (2, 1, 8, 8, 8)


def test_sides_that_cannot_be_halved_are_padded_and_cropped_back() -> None:
    adapted = wrap_monai(monai_unet(3)).eval()
    x, t = torch.randn(2, 1, 5, 8, 6), torch.full((2,), 7.0)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1), mode="replicate")
    with torch.no_grad():
        assert torch.equal(adapted(x, t), adapted.unet(padded, timesteps=t)[:, :, :5])


def test_timesteps_between_two_trained_ones_reach_the_embedding() -> None:
    net = wrap_monai(monai_unet())
    x = torch.randn(1, 1, 16, 16)
    at = [net(x, torch.tensor([t])).detach() for t in (250.0, 250.5, 251.0)]
    assert not torch.equal(at[0], at[1])
    assert torch.allclose(at[1], (at[0] + at[2]) / 2, atol=float((at[2] - at[0]).abs().max()) / 2)


def test_a_learnt_table_of_timesteps_is_indexed_by_whole_numbers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is a development dependency")
    net = diffusers_unet(diffusers, time_embedding_type="learned", num_train_timesteps=100)
    wrapped = wrap_diffusers(net)
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(wrapped(x, torch.tensor([41.6])), net(x, 42).sample)


def test_learnt_variance_is_set_aside() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
            return torch.cat([x, 9 * x], dim=1)

    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(ForeignNetwork(Twice(), "timesteps", integers=False)(x, torch.zeros(2)), x)


def test_a_network_without_timesteps_is_refused() -> None:
    net = nn.Identity()
    net.config = SimpleNamespace(time_embedding_type="fourier")  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="fourier"):
        wrap_diffusers(net)
