"""`--batch-size` of volumes: the slices or windows that the network sees at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from anodiff.errors import ConfigError, StorageError

SECTIONS = {
    "slices": {"axes": [0, 2], "min_foreground": 0.05},
    "patches": {"mode": "patches", "patch": [8, 8, 8], "min_foreground": 0.0},
}


@pytest.fixture
def seen() -> Any:
    """Rows of every batch that reached a denoiser."""
    rows: set[int] = set()

    def look(module: Any, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ == "Denoiser":
            rows.add(len(inputs[0]))

    handle = register_module_forward_pre_hook(look)
    yield rows
    handle.remove()


def found(folder: Path, name: str) -> tuple[float, np.ndarray]:
    """(score as written, map) of a volume."""
    text = (folder / "scores.csv").read_text().splitlines()
    row = next(line for line in text if line.startswith(f"{name},"))
    return float(row.split(",")[2]), np.asarray(nibabel.load(folder / "maps" / f"{name}.nii.gz").dataobj)


@pytest.mark.parametrize("mode", SECTIONS)
def test_it_is_the_networks_batch_and_changes_nothing_else(
    scans: Any, anodiff: Callable[..., int], seen: set[int], tmp_path: Path, mode: str
) -> None:
    """Bit-equal alone and among others, whose slices end elsewhere; 1e-4 with another batch."""
    model = scans.mirror(tmp_path / "m.safetensors", lively=True, volume=SECTIONS[mode])
    for n, shape in enumerate(((16, 16, 16), (16, 14, 9), (12, 16, 10))):
        scans.save(tmp_path / "in" / f"v{n}.nii.gz", scans.head(n, shape, lesion=True))
    plain = ("--no-heatmaps", "--output")
    assert anodiff("score", model, tmp_path / "in", "--batch-size", 3, *plain, tmp_path / "all") == 0
    assert seen == {3}
    one = tmp_path / "in" / "v1.nii.gz"
    assert anodiff("score", model, one, "--batch-size", 3, *plain, tmp_path / "alone") == 0
    assert seen == {3}
    seen.clear()
    assert anodiff("score", model, one, "--batch-size", 7, *plain, tmp_path / "other") == 0
    assert seen == {7}
    seen.clear()
    assert anodiff("score", model, one, *plain, tmp_path / "plain") == 0
    assert seen == {16}
    (score, values), (same, again), (near, close) = (
        found(tmp_path / folder, "v1") for folder in ("all", "alone", "other")
    )
    assert np.ptp(values) > 0.1
    assert score == same
    assert values.tobytes() == again.tobytes()
    assert near == pytest.approx(score, rel=1e-4)
    assert np.allclose(close, values, rtol=1e-4, atol=1e-4 * float(np.abs(values).max()))


def test_two_words_for_one_thing_and_a_run_of_another_batch_are_refused(scans: Any, tmp_path: Path) -> None:
    model = scans.mirror(tmp_path / "m.safetensors")
    source = scans.save(tmp_path / "v.nii.gz", scans.head(1))
    with pytest.raises(ConfigError, match=r"--batch-size 3: .* --set engine\.network_batch=4"):
        scans.run(model, tmp_path / "out", source, batch_size=3, overrides=["engine.network_batch=4"])
    scans.run(model, tmp_path / "out", source, batch_size=3, heatmaps=False)
    with pytest.raises(StorageError, match="network_batch was 3, is 4"):
        scans.run(model, tmp_path / "out", source, batch_size=4, heatmaps=False)


def test_calibrate_and_evaluate_have_it_too(
    scans: Any, anodiff: Callable[..., int], seen: set[int], tmp_path: Path
) -> None:
    model = scans.mirror(tmp_path / "m.safetensors", volume=SECTIONS["slices"], preset="one-step")
    lines = ["path,label"]
    for n in range(3):
        scans.save(tmp_path / f"n{n}.nii.gz", scans.head(n))
        lines.append(f"n{n}.nii.gz,0")
    (tmp_path / "n.csv").write_text("\n".join(lines) + "\n")
    target = tmp_path / "c.safetensors"
    assert anodiff("calibrate", model, tmp_path / "n.csv", "--output", target, "--batch-size", 5) == 0
    assert seen == {5}
    seen.clear()
    arguments = ("--output", tmp_path / "out", "--batch-size", 6, "--no-heatmaps")
    assert anodiff("evaluate", target, tmp_path / "n.csv", *arguments) == 0
    assert seen == {6}
