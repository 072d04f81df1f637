"""Classes of training images: names or labels decide, held-out groups stay out, and some labels are dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anodiff.config import ConditioningConfig, parse_config
from anodiff.data.table import Sample, SampleTable, build_table
from anodiff.diffusion import NO_LABEL
from anodiff.errors import DataError, TrainingError
from anodiff.training import Trainer, split_normals
from anodiff.training.examples import Drawn, ImageExamples
from anodiff.training.labels import class_numbers, labelled

BOTH = ConditioningConfig(classes=("healthy", "diseased"))
CPU = torch.device("cpu")


def table(*rows: tuple[str, int | None, str]) -> SampleTable:
    """(class name, label, group) of each image."""
    samples = [Sample(f"/d/{n}.png", label, "", group, "", name) for n, (name, label, group) in enumerate(rows)]
    return build_table(samples, "manifest", Path("/d"))


def test_names_decide_before_labels() -> None:
    rows = table(("Healthy", 0, ""), ("diseased", 1, ""), ("healthy", None, ""))
    assert class_numbers(rows, BOTH) == [0, 1, 0]
    assert class_numbers(table(("good", 0, ""), ("crack", 1, ""), ("", 1, "")), BOTH) == [0, 1, 1]
    other = ConditioningConfig(classes=("diseased", "healthy"), normal="healthy")
    assert class_numbers(table(("", 0, ""), ("", 1, "")), other) == [1, 0]


@pytest.mark.parametrize(
    ("rows", "classes", "said"),
    [
        ([("healthy", 0, ""), ("sick", 1, "")], ("healthy", "diseased"), "found 1 of others or of none: sick 1"),
        ([("", 0, ""), ("", None, "")], ("healthy", "diseased"), r"found 1 of others or of none: \(none\) 1"),
        ([("a", 0, ""), ("b", 1, "")], ("x", "y", "z"), "found 2 of others"),
        ([("healthy", 1, ""), ("diseased", 1, "")], ("healthy", "diseased"), "found 1 that are labelled anomalous"),
    ],
)
def test_images_of_no_class_are_refused(rows: list[Any], classes: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        class_numbers(table(*rows), ConditioningConfig(classes=classes))


def test_held_out_groups_are_those_of_a_model_without_classes_and_stay_out() -> None:
    rows = table(*(row for n in range(12) for row in (("healthy", 0, f"p{n}"), ("diseased", 1, f"p{n}"))))
    kept, held = split_normals(rows, 0.25, 0)
    parts = labelled(rows, kept, held, BOTH)
    groups = set(held.table["group"])
    assert not groups & set(parts.learnt.table["group"])
    assert len(parts.learnt) == 2 * len(kept)
    assert parts.labels == parts.learnt.table["label"].tolist()
    assert list(parts.held.table["path"]) == list(held.table["path"])
    assert parts.held_labels == [0] * len(held)


def test_a_class_without_images_is_refused() -> None:
    rows = table(*(("healthy", 0, f"p{n}") for n in range(4)))
    with pytest.raises(DataError, match="found none of diseased"):
        labelled(rows, *split_normals(rows, 0.5, 0), BOTH)


def trainer(recipe: dict[str, Any], labels: torch.Tensor | None, **conditioning: Any) -> Trainer:
    config = parse_config({**recipe, "conditioning": conditioning or None})
    images = torch.rand(32, 1, 16, 16) * 2 - 1
    examples = ImageExamples(images, config.augment, labels)
    held = Drawn(images[:4], label=None if labels is None else labels[:4])
    return Trainer(config, examples, held, device=CPU, precision="fp32")


def test_labels_are_dropped_at_the_stated_share_and_the_same_ones_again(tiny_recipe: dict[str, Any]) -> None:
    labels = torch.arange(32) % 2
    mine = trainer(tiny_recipe, labels, drop=0.25)
    seen: list[torch.Tensor] = []

    def spy(denoiser: Any, drawn: Drawn, u: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        assert drawn.label is not None
        seen.append(drawn.label)
        return torch.zeros(len(u))

    mine._denoising_loss = spy  # type: ignore[method-assign, assignment]
    rows, u = torch.arange(4096), torch.rand(4096, 16)
    mine._loss(rows, u[:, 0], u)
    mine._loss(rows[100:200], u[100:200, 0], u[100:200])
    dropped = (seen[0] == NO_LABEL).double().mean()
    assert abs(float(dropped) - 0.25) < 4 * (0.25 * 0.75 / 4096) ** 0.5
    assert torch.equal(seen[1], seen[0][100:200])
    kept = seen[0] != NO_LABEL
    assert torch.equal(seen[0][kept], labels[mine._pick(rows)][kept])


def test_training_moves_every_entry_of_the_table(tiny_recipe: dict[str, Any]) -> None:
    mine = trainer(tiny_recipe, torch.arange(32) % 2, drop=0.5)
    before = mine.network.get_parameter("embedding.classes.weight").detach().clone()
    for _ in range(3):
        mine.step()
    moved = (mine.network.get_parameter("embedding.classes.weight") - before).abs().amax(1)
    assert moved.shape == (3,)
    assert bool((moved > 1e-6).all())
    assert mine.validate() > 0


def test_labels_and_recipe_belong_together(tiny_recipe: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="found none"):
        trainer(tiny_recipe, None, drop=0.1)
    with pytest.raises(TrainingError, match="found some"):
        trainer(tiny_recipe, torch.zeros(32, dtype=torch.long))
