"""A noise schedule that is learnt: a monotone network from the step to ln sigma, trained on the variational bound.

The bound of a chain depends on its levels through one curve only, the squared error that the denoiser makes at each
level (Kingma et al. 2021, equations 13 and 14), and training measures that anyway. So the schedule costs no call: the
curve is kept as a moving average, and the levels move to where the bound over it is lowest. The ends stay.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from anodiff.diffusion.schedule import NoiseSchedule
from anodiff.errors import ConfigError

UNITS = 32
#: bins of the curve over ln sigma, and the weight of its past in the moving average
BINS, MEMORY = 64, 0.98
#: weights are exp(GAIN * parameter), so that the learning rates of networks move them
GAIN = 10.0


class LearnedSchedule(nn.Module):
    """ln sigma of step u in [0, 1]: ``UNITS`` ramps, one after the other, with positive weights of sum 1.

    low, high: the ends, in data units. It starts evenly spaced in ln sigma. Raises ConfigError unless 0 < low < high.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low < high < math.inf:
            raise ConfigError(f"a learned schedule needs 0 < low < high, found {low:g} and {high:g}")
        self.low, self.high = float(low), float(high)
        self.weights = nn.Parameter(torch.zeros(UNITS))
        self.register_buffer("curve", torch.zeros(BINS))
        self.register_buffer("measured", torch.zeros(BINS))

    def log_sigmas(self, num_steps: int) -> Tensor:
        """(T,) float64, strictly ascending from ln low to ln high, with its graph."""
        u = torch.linspace(0, 1, num_steps, dtype=torch.float64, device=self.weights.device)
        first = torch.arange(UNITS, dtype=torch.float64, device=u.device)
        ramps = (UNITS * u[:, None] - first).clamp(0, 1)
        shares = (GAIN * self.weights.double()).softmax(0)
        return math.log(self.low) + math.log(self.high / self.low) * (ramps @ shares)

    def table(self, num_steps: int) -> NoiseSchedule:
        """The variance-preserving schedule of T steps as it is now."""
        with torch.no_grad():
            sigmas = self.log_sigmas(num_steps).exp().cpu()
        return NoiseSchedule("learned", (1 + sigmas**2).rsqrt(), sigmas)

    @torch.no_grad()
    def observe(self, sigma: Tensor, error: Tensor) -> None:
        """Takes squared errors a dimension (N,) at levels (N,) into the curve; levels beyond the ends are left out."""
        curve, measured = self.get_buffer("curve"), self.get_buffer("measured")
        place = self._place(sigma.to(curve.device).double().log())
        inside = ((place >= 0) & (place < BINS)).to(curve)
        bins = place.long().clamp(0, BINS - 1)
        counts = torch.zeros_like(curve).index_add_(0, bins, inside)
        means = torch.zeros_like(curve).index_add_(0, bins, inside * error.to(curve)) / counts.clamp(min=1)
        past = torch.where(measured > 0, MEMORY, 0.0).to(curve)
        curve.copy_(torch.where(counts > 0, past * curve + (1 - past) * means, curve))
        measured.copy_(torch.maximum(measured, (counts > 0).to(measured)))

    def bound(self, num_steps: int) -> Tensor:
        """Nats a dimension of the chain of T levels over the curve, with the graph of the levels; 0 before any error.

        sum over t of (1 / sigma_{t-1}^2 - 1 / sigma_t^2) / 2 * error(sigma_t), the curve interpolated in logarithms.
        """
        levels = self.log_sigmas(num_steps)
        known = self.get_buffer("measured").nonzero().flatten()
        if not len(known):
            return levels.sum() * 0
        precision = (-2 * levels).exp()
        return ((precision[:-1] - precision[1:]) / 2 * self._error(levels[1:], known)).sum()

    def _error(self, log_sigma: Tensor, known: Tensor) -> Tensor:
        """The curve at levels, linear between the logarithms of its measured bins, constant beyond."""
        logs = self.get_buffer("curve")[known].double().clamp(min=1e-12).log()
        if len(known) == 1:
            return logs.exp().expand_as(log_sigma)
        place = (self._place(log_sigma) - 0.5).clamp(known[0], known[-1])
        high = torch.searchsorted(known.double(), place.detach().contiguous()).clamp(1, len(known) - 1)
        left, right = known[high - 1], known[high]
        return torch.lerp(logs[high - 1], logs[high], (place - left) / (right - left)).exp()

    def _place(self, log_sigma: Tensor) -> Tensor:
        """Position in bins: bin k covers k to k + 1."""
        return (log_sigma - math.log(self.low)) / math.log(self.high / self.low) * BINS
