"""The denoiser as it runs at inference: on one device, in one precision, always in one batch shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anodiff.engine.compiling import compile_network
from anodiff.engine.device import autocast, describe, resolve_device, resolve_precision, to_device
from anodiff.engine.memory import peak_bytes
from anodiff.errors import ConfigError

GIB = 2**30


class InferenceDenoiser:
    """A denoiser (x, sigma) -> x0 that gives each row the same bits whatever the other rows are.

    Kernels choose their algorithm by the shape of the batch, so the same image in a batch of 7 and of 32 would
    differ in its last bits. Here the network only ever sees exactly `network_batch` rows: longer batches are cut,
    the last piece is padded with copies of its last row and cropped. It runs in eval mode, without gradients,
    channels-last. In bf16 it runs a copy whose convolutions and products hold rounded weights, so that autocast need
    not round them again at every call: the same bits, a tenth less time.

    Args:
        denoiser: an `nn.Module` called as denoiser(x (N, C, *S) float32, sigma (N,) float32) -> (N, C, *S); it is
            moved to the device and set to eval mode in place.
        device: "auto", "cpu", "cuda[:N]" or a torch device.
        precision: "auto", "fp32" or "bf16"; see `resolve_precision`.
        network_batch: rows of the one internal batch; changing it may change results by float rounding (1e-4
            relative, fp32). Where the device has no memory for so many it is halved, and `notes` says so.
        compiled: compile the network for this batch shape with its weights as constants, once a process: half a minute
            or more at the first call, less time at every other. Results change within the tolerance of the precision.
            Where there is no compiler it is not done, and `notes` says so.
        max_memory: GiB that the tensors of one internal batch may take beside the weights; where `network_batch` rows
            need more, fewer are taken, and `notes` says so. On a CUDA device the process may take no more in all.

    Attributes:
        notes: sentences on what was not done as asked.
        calls: denoiser evaluations asked for so far, in rows without padding; divided by images it is the NFE.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        device: str | torch.device = "auto",
        precision: str = "auto",
        network_batch: int = 16,
        compiled: bool = False,
        max_memory: float | None = None,
    ) -> None:
        if network_batch < 1:
            raise ConfigError(f"engine.network_batch: expected at least 1, found {network_batch}")
        if max_memory is not None and not max_memory > 0:
            raise ConfigError(f"engine.max_memory: expected GiB above 0, found {max_memory}")
        self.device = resolve_device(device)
        self.max_memory = max_memory
        self._measured: set[tuple[Any, ...]] = set()
        if max_memory is not None and self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, max_memory * GIB / total), self.device)
        if self.device.type == "cpu":
            _even_threads()
        self.precision = resolve_precision(precision, self.device)
        self.network_batch = network_batch
        self.calls = 0
        self.notes: list[str] = []
        self.denoiser = denoiser.to(self.device).eval()
        _channels_last(self.denoiser)
        self.compiled = compiled
        if self.precision == "bf16" or compiled:
            self.denoiser = copy.deepcopy(self.denoiser)
        if self.precision == "bf16":
            _round_weights(self.denoiser)
        if compiled:
            note = compile_network(getattr(self.denoiser, "network", self.denoiser), self.device, frozen=True)
            self.compiled = not note
            self.notes += [note] if note else []

    def __call__(
        self, x: Tensor, sigma: Tensor | float, context: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """x (N, C, *S), sigma scalar or (N,), in units of the [-1, 1] data -> estimate of x0, (N, C, *S) float32.

        context: (N, K, *S), what the denoiser is given beside the noisy image, or None.
        label: (N,) int64, the class that the denoiser is told for each row, or None.
        """
        pieces = self._run(self.denoiser, x, sigma, context, label)
        return torch.cat([piece.float() for piece in pieces]) if pieces else torch.empty_like(x, device=self.device)

    @property
    def sentence(self) -> str:
        """All that was decided for the device at hand, on one line."""
        place = describe(self.device, self.precision)
        how = "compiled" if self.compiled else "not compiled"
        rows = f"{self.network_batch} rows at once"
        return f"{place['device']} ({place['name']}), {self.precision}, channels last, {how}, {rows}"

    @property
    def sees_image(self) -> bool:
        """Whether each call needs the noise-free image as its context, see `Denoiser`."""
        return bool(getattr(self.denoiser, "sees_image", False))

    def with_variance(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """The estimate and where the reverse variance lies, see `Denoiser.with_variance`; both (N, C, *S) float32."""
        pieces = self._run(self.denoiser.with_variance, x, sigma)  # type: ignore[arg-type]
        denoised, share = (torch.cat([piece[part].float() for piece in pieces]) for part in (0, 1))
        return denoised, share

    def given(self, context: Tensor | None) -> Callable[[Tensor, Tensor | float], Tensor]:
        """This denoiser (x, sigma) -> x0 with its context fixed."""
        return self if context is None else partial(self, context=context)

    def features(self, x: Tensor, sigma: Tensor | float) -> list[Tensor]:
        """Encoder activations for x (N, C, *S) at level sigma: one (N, K, *s) float32 tensor a level, finest first.

        Raises:
            ConfigError: the network offers no features.
        """
        function = getattr(self.denoiser, "features", None)
        if function is None:
            raise ConfigError("residual 'features' needs a network with encoder features, found one without")
        pieces = self._run(function, x, sigma)
        return [torch.cat([piece[level].float() for piece in pieces]) for level in range(len(pieces[0]))]

    def _run(
        self,
        function: Callable[..., Any],
        x: Tensor,
        sigma: Tensor | float,
        context: Tensor | None = None,
        label: Tensor | None = None,
    ) -> list[Any]:
        rows = x.shape[0]
        x = to_device(x, self.device, torch.float32)
        level = to_device(torch.as_tensor(sigma, dtype=torch.float32), self.device).expand(rows)
        rest = () if context is None else (to_device(context, self.device, torch.float32),)
        if label is not None:
            function, rest = partial(_with_label, function), (*rest, to_device(label, self.device))
        self.calls += rows
        if self.max_memory is not None and rows:
            self._bound(self.max_memory, function, x, level, *rest)
        while True:
            with suppress(torch.OutOfMemoryError):
                return self._pieces(function, x, level, *rest)
            # not while the error is handled: its traceback holds what the failed call has on the device
            self._halve()

    def _pieces(self, function: Callable[..., Any], *inputs: Tensor) -> list[Any]:
        rows = inputs[0].shape[0]
        pieces = (slice(start, start + self.network_batch) for start in range(0, rows, self.network_batch))
        return [self._piece(function, *(each[piece] for each in inputs)) for piece in pieces]

    def _bound(self, most: float, function: Callable[..., Any], *inputs: Tensor) -> None:
        """Takes fewer rows at once where `most` GiB do not hold so many of this shape; one row tells, once a shape."""
        key = (getattr(function, "__name__", ""), *(tuple(each.shape[1:]) for each in inputs))
        if key in self._measured:
            return
        self._measured.add(key)
        asked, self.network_batch = self.network_batch, 1
        row = None
        try:
            # a compiled network would be compiled again for one row
            with suppress(torch.OutOfMemoryError), torch.compiler.set_stance("force_eager"):
                row = peak_bytes(lambda: self._piece(function, *(each[:1] for each in inputs)))
        finally:
            self.network_batch = asked
        if row is None:
            raise self._starved()
        fitting = int(most * GIB // max(row, 1))
        if fitting < 1:
            raise ConfigError(
                f"engine.max_memory: expected memory for one image at a time, about {row / GIB:.2g} GiB, found "
                f"{most:g} GiB; score in smaller windows or on a smaller grid"
            )
        if fitting < asked:
            self.network_batch = fitting
            self.notes.append(
                f"engine.max_memory of {most:g} GiB: engine.network_batch={fitting}, at {row / GIB:.2g} GiB a row; "
                f"scores agree to 1e-4 with those of {asked}, not to the bit"
            )

    def _halve(self) -> None:
        """A smaller internal batch, after memory ran out. Raises ConfigError where one image is too much."""
        if self.network_batch == 1:
            raise self._starved()
        self.network_batch //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.notes.append(
            f"out of memory: went on with engine.network_batch={self.network_batch}; scores agree to 1e-4 with "
            "those of another internal batch, not to the bit"
        )

    def _starved(self) -> ConfigError:
        return ConfigError(
            f"{self.device}: expected memory for one image at a time, found too little; score in smaller windows or on "
            "a smaller grid"
        )

    def _piece(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        rows = inputs[0].shape[0]
        whole = [self._filled(each) for each in inputs]
        with torch.inference_mode(), autocast(self.device, self.precision), _same_algorithms():
            out = function(*whole)
        return [level[:rows] for level in out] if isinstance(out, list | tuple) else out[:rows]

    def _filled(self, piece: Tensor) -> Tensor:
        """The piece as ``network_batch`` rows: its last one repeated, channels last."""
        missing = self.network_batch - piece.shape[0]
        if missing:
            piece = torch.cat([piece, piece[-1:].expand(missing, *piece.shape[1:])])
        return piece.contiguous(memory_format=_memory_format(piece.ndim))


def _with_label(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """The function of all inputs but the last, which is its label."""
    return function(*inputs[:-1], label=inputs[-1])


def _round_weights(module: nn.Module) -> None:
    """What autocast would round at every call, once."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Conv3d | nn.Linear):
            part.to(torch.bfloat16)


def _even_threads() -> None:
    """Limits torch to a power of two of CPU threads.

    A thread's share of a tensor ends in a remainder that is not vectorised, and whose exp differs in the last bits.
    With a power of two the shares are whole vectors, so that a row's bits do not depend on its place in the batch
    (measured on a SiLU of 16x64x64x64: 9, 9 and 24 elements differ with 3, 6 and 12 threads, none with 1, 2 or 4).
    """
    threads = torch.get_num_threads()
    even = 1 << (threads.bit_length() - 1)
    if even != threads:
        torch.set_num_threads(even)


def _memory_format(ndim: int) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(ndim, torch.contiguous_format)


def _channels_last(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=_memory_format(parameter.ndim))


def _same_algorithms() -> Any:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
