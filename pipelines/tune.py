"""anodiff tune: choose a detector's settings on normal images alone, with the evidence on a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError, StorageError
from anodiff.pipelines.calibrate import OPEN_KEYS, fit, store_calibration
from anodiff.pipelines.calibration_normals import read_normals
from anodiff.pipelines.common import (
    BatchSize,
    Device,
    GroupBy,
    Layout,
    Model,
    ModelOutput,
    Normal,
    Precision,
    Seed,
    Set,
    left_out,
    new_file,
    open_model,
    say,
)

if TYPE_CHECKING:
    from anodiff.anomaly import AnomalyDetector, DetectorSettings
    from anodiff.anomaly.tuning import Tuning
    from anodiff.config import AnodiffConfig
    from anodiff.model import DiffusionModel
    from anodiff.pipelines.calibration_normals import CalibrationNormals
    from anodiff.training.images import ImageSet
    from anodiff.visualize.tuning import TuneExample

#: normals that fit the normal error, for each one that anomalies are planted in
FIT_SHARE = 4
#: slots of the settings that the search leaves alone, and the page leaves out
FIXED = ("pairs", "where", "box", "sampler", "steps", "grid", "trajectory", "variance", "guidance", "refine", "map_px",
         "foreground")  # fmt: skip


def main(
    model: Model,
    normals: Annotated[Path, typer.Argument(help="Normal images: a folder, a known layout, or a CSV manifest.")],
    output: ModelOutput,
    nfe: Annotated[int | None, typer.Option(min=1, help="Most network calls an image; else the preset's.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="The preset to start from, kept in what gains nothing; by default the model's.")
    ] = None,
    preset_name: Annotated[str, typer.Option(help="Name of the new preset, which becomes the model's own.")] = "tuned",
    kinds: Annotated[
        str, typer.Option(metavar="KIND,...", help="Anomalies to plant: foreign, blob, texture, deform, cutpaste.")
    ] = "",
    levels: Annotated[str, typer.Option(metavar="SIGMA,...", help="Levels to try besides the preset's own.")] = "",
    noises: Annotated[
        str, typer.Option(metavar="FAMILY,...", help="Noise families to try besides the preset's; none: no other.")
    ] = "",
    images: Annotated[int, typer.Option(min=8, help="Most normals in which anomalies are planted.")] = 48,
    allow_trained: Annotated[
        bool, typer.Option("--allow-trained", help="Also where the model has learnt from most of these images.")
    ] = False,
    layout: Layout = "auto",
    normal: Normal = "",
    group_by: GroupBy = "",
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Choose levels, noise family, residual, standardisation, limits, smoothing, fusion and reduction without labels.

    Synthetic anomalies are planted into held-out normal images; what shows them best within the budget of network
    calls becomes a new preset, where it gains more than a standard error over the present one. The new model file is
    calibrated for it on the same normals. Beside it OUTPUT.tune.html shows the evidence, OUTPUT.tune.json holds it.

    \b
    Examples:
      anodiff tune runs/mine/model.safetensors normals/ --output tuned.safetensors
      anodiff tune model.safetensors brain_lgg --nfe 8 --kinds blob,foreign --output tuned.safetensors
      anodiff score tuned.safetensors scans/ --preset tuned --output out/scans
    """
    _, failed = run(
        model, normals, output,
        nfe=nfe, preset=preset, preset_name=preset_name, kinds=words(kinds), levels=numbers(levels),
        noises=[] if noises == "none" else words(noises), images=images, allow_trained=allow_trained,
        layout=layout, normal=normal, group_by=group_by, device=device, precision=precision, batch_size=batch_size,
        seed=seed, overrides=set_,
    )  # fmt: skip
    raise typer.Exit(int(bool(failed)))


def run(
    model_path: Path,
    normals: Path,
    output: Path,
    *,
    nfe: int | None = None,
    preset: str | None = None,
    preset_name: str = "tuned",
    kinds: list[str] | None = None,
    levels: list[float] | None = None,
    noises: list[str] | None = None,
    images: int = 48,
    allow_trained: bool = False,
    layout: str = "auto",
    normal: str = "",
    group_by: str = "",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> tuple[Tuning, tuple[str, ...]]:
    """Tunes, calibrates, writes model, page and numbers; returns the tuning, and a sentence for each image left out."""
    from anodiff.anomaly.tuning import tune
    from anodiff.files import write_json
    from anodiff.pipelines.sizes import refuse_any_size
    from anodiff.visualize.tuning import write_tune_page

    check_paths(model_path, output)
    check_name(preset_name)
    model = open_model(model_path, overrides, OPEN_KEYS)
    config = model.config
    preset = preset or config.preset
    refuse_any_size(model, "anodiff tune")

    known = read_normals(
        model,
        normals,
        layout=layout,
        normal=normal,
        group_by=group_by,
        allow_trained=allow_trained,
        seed=seed,
        quiet=quiet,
    )
    held, first = known.deciding, known.fitting
    tuning = tune(
        model, part(held.sample(images * (1 if first else 2), seed)), preset,
        fit=None if first is None else part(first.sample(FIT_SHARE * images, seed)),
        nfe=nfe, kinds=kinds, levels=levels, noises=noises,
        device=device, precision=precision, seed=seed, batch_size=batch_size, quiet=quiet,
    )  # fmt: skip
    detector = adopt(
        model, preset, preset_name, tuning.settings, known,
        device=device, precision=precision, batch_size=batch_size, seed=seed, quiet=quiet,
    )  # fmt: skip
    model.save(output)
    write_json(output.with_suffix(".tune.json"), {"preset": preset_name, "from": preset} | tuning.to_json())
    write_tune_page(output.with_suffix(".tune.html"), page_of(tuning, detector, f"{config.name}: {preset_name}"))
    for line in (*tuning.sentences, *(f"note: {note}" for note in detector.notes)):
        say(line, quiet)
    if known.failed:
        say(left_out(known.failed), quiet)
    say(f"wrote {output}, calibrated for {preset_name!r}; why: {output.with_suffix('.tune.html')}", quiet)
    return tuning, known.failed


def words(text: str) -> list[str] | None:
    """The words between commas; None where nothing is given."""
    return [word.strip() for word in text.split(",") if word.strip()] or None


def numbers(text: str) -> list[float] | None:
    """The numbers between commas; None where nothing is given. Raises ConfigError."""
    try:
        return [float(word) for word in words(text) or []] or None
    except ValueError:
        raise ConfigError(f"--levels: expected numbers between commas, found {text!r}") from None


def check_paths(model: Path, output: Path) -> None:
    """Raises StorageError where the new file is the model itself, or it or the evidence beside it is there already."""
    if output.resolve() == model.resolve():
        raise StorageError(f"{output}: expected a new file, found the model itself; no command changes one in place")
    for path in (output, output.with_suffix(".tune.json"), output.with_suffix(".tune.html")):
        new_file(path)


def check_name(name: str) -> None:
    """Raises ConfigError for a name that cannot be a preset's, or that a shipped preset has."""
    from anodiff.anomaly import PRESETS

    if name in PRESETS or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(
            f"--preset-name {name!r}: expected letters, digits, - and _, and not the name of a shipped preset "
            f"({', '.join(PRESETS)})"
        )


def part(images: ImageSet) -> Any:
    """Images as the tuning takes them."""
    from anodiff.anomaly.planted import Normals

    return Normals(images.images, images.groups, images.foreground)


def adopt(
    model: DiffusionModel,
    preset: str,
    preset_name: str,
    chosen: DetectorSettings,
    normals: CalibrationNormals,
    *,
    device: str,
    precision: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    quiet: bool = False,
) -> AnomalyDetector:
    """Makes the settings, found from ``preset``, the model's own preset and calibrates it; in memory."""
    from anodiff.anomaly import AnomalyDetector
    from anodiff.config import parse_config

    config = model.config
    presets = {**config.presets, preset_name: slots(config, preset, chosen)}
    model.config = parse_config(config.model_dump(mode="json") | {"presets": presets, "preset": preset_name}, "tune")
    detector = AnomalyDetector(model, preset_name, device=device, precision=precision, seed=seed)
    calibration = fit(
        detector, normals.deciding, normals.fitting, config.calibration, batch_size=batch_size, quiet=quiet
    )
    store_calibration(model, preset_name, calibration)
    return detector


def slots(config: AnodiffConfig, preset: str, chosen: DetectorSettings) -> dict[str, Any]:
    """The new preset as a recipe holds it: the preset that it starts from, and the slots set otherwise."""
    from anodiff.anomaly import PRESETS, resolve

    own = config.presets.get(preset, {})
    before = resolve(preset, config)[1].to_json()
    changed = {slot: value for slot, value in chosen.to_json().items() if value != before[slot]}
    return {**own, **changed, "base": preset if preset in PRESETS else own["base"]}


def page_of(tuning: Tuning, detector: AnomalyDetector, title: str) -> Any:
    """The evidence page, with maps by the calibrated detector."""
    from anodiff.pipelines.pictures import calibrated_scale
    from anodiff.visualize.tuning import TunePage

    scale = calibrated_scale(detector.calibration)
    assert scale is not None
    counts = tuning.counts
    kept = next(row for row in tuning.candidates if row.verdict == "kept")
    before, after = tuning.present.to_json(), tuning.settings.to_json()
    return TunePage(
        title=title,
        sentences=tuning.sentences,
        tiles=[
            ("pixel AP of planted anomalies", f"{kept.ap:.3f}"),
            (f"against {tuning.against}", f"{kept.gain:+.3f}"),
            ("network calls an image", str(kept.nfe)),
            ("planted images", f"{counts['planted_images']:,}"),
            (f"normals, of {counts['normal_groups']:,} groups", f"{counts['normal_images']:,}"),
        ],
        choice=[(slot, text(before[slot]), text(after[slot])) for slot in after if slot not in FIXED],
        candidates=tuning.candidates,
        reductions=tuning.reductions,
        kinds=tuning.kinds,
        levels=tuning.levels,
        level_curve=tuning.level_curve,
        chosen_levels=tuning.settings.levels,
        nfe_curve=tuning.nfe_curve,
        examples=examples_of(tuning, detector),
        scale=scale,
    )


def text(value: Any) -> str:
    """A slot's value for the reader."""
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def examples_of(tuning: Tuning, detector: AnomalyDetector) -> list[TuneExample]:
    """A planted image of each kind with its map; of a volume the slice with most of the anomaly."""
    import numpy as np

    from anodiff.visualize.heatmap import display_image
    from anodiff.visualize.tuning import TuneExample

    images, masks, foreground = tuning.examples
    maps = detector(images, foreground).maps
    found = []
    for kind, image, mask, values in zip(tuning.kinds, images, masks, maps.cpu(), strict=True):
        if mask.ndim == 3:
            deep = int(mask.flatten(1).sum(dim=1).argmax())
            image, mask, values = image[:, deep], mask[deep], values[deep]
        shown = display_image(np.moveaxis(image.numpy(), 0, -1))
        found.append(TuneExample(kind, shown, values.numpy(), mask.numpy()))
    return found
