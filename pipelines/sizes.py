"""Images of several sizes in one batch, and which jobs need images of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from anodiff.errors import ConfigError

if TYPE_CHECKING:
    from anodiff.data.preprocess import Prepared
    from anodiff.model import DiffusionModel


class HasImage(Protocol):
    """An input that was prepared for the model."""

    @property
    def prepared(self) -> Prepared: ...


Read = TypeVar("Read", bound=HasImage)
Made = TypeVar("Made")


def by_size(batch: Sequence[Read], compute: Callable[[list[Read]], Sequence[Made]]) -> list[Made]:
    """What ``compute`` makes of a batch, images of one size at a time, in the order of the batch."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, each in enumerate(batch):
        rows.setdefault(each.prepared.geometry.model, []).append(row)
    made: dict[int, Made] = {}
    for same in rows.values():
        made |= zip(same, compute([batch[row] for row in same]), strict=True)
    return [made[row] for row in range(len(batch))]


def refuse_any_size(model: DiffusionModel, what: str, asked: Any = True) -> None:
    """Raises ConfigError where something is asked for that needs images of one size, of a model of any."""
    if model.config.any_size and asked is not None and asked is not False:
        raise ConfigError(
            f"{what}: expected a model of images of one size, found one of any (preprocess.resize none with "
            "engine.window)"
        )
