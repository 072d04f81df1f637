"""anodiff watch: a camera, a stream or a recorded clip, scored as it comes; events as JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anodiff.errors import ConfigError
from anodiff.pipelines.common import (
    BatchSize,
    Device,
    Model,
    Output,
    Overwrite,
    Precision,
    Preset,
    Seed,
    Set,
    file_digest,
    open_model,
    say,
)

if TYPE_CHECKING:
    import threading

    from anodiff.data.video.clip import Clip
    from anodiff.pipelines.watch_summary import WatchSummary

#: keys of the recipe that watching may override
OPEN_KEYS = (
    "engine",
    "presets",
    "polarity",
    "preprocess.max_pixels",
    "preprocess.channel",
    "video.false_alarms_per_hour",
)
#: what a watch writes and --overwrite removes
WRITTEN = ("events.jsonl", "events.csv", "frames.csv", "summary.json", ".anodiff/watch.csv")


def main(
    model: Model,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="rtsp:// or http:// URL, camera:N, a video or folder of frames."),
    ],
    output: Output,
    preset: Preset = None,
    duration: Annotated[float | None, typer.Option(min=0.0, help="Seconds of the source after which to end.")] = None,
    max_delay: Annotated[float, typer.Option(min=0.1, help="Seconds a live frame may wait to be scored.")] = 5.0,
    annotate: Annotated[bool, typer.Option("--annotate", help="Write annotated.mp4 as well.")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    set_: Set = None,
) -> None:
    """Watch a source: OUTPUT/events.jsonl (one line when an event begins, goes on, ends), thumbnails/, summary.json.

    A live source (URL, camera) is watched until Ctrl-C. When scoring is behind, the frames that have waited longest are
    not scored, and counted; they still count as the past of later ones. When the source stops it is tried again until
    it returns; the gap is reported. A recorded source waits instead, drops nothing, has events.csv and frames.csv as
    well, and goes on where it stopped when the same command is given again.

    \b
    Examples:
      anodiff watch model.safetensors rtsp://camera.local/main --output out/gate
      anodiff watch model.safetensors camera:0 --output out/desk --duration 3600 --annotate
      anodiff watch model.safetensors night.mp4 --output out/night --set video.false_alarms_per_hour=1
    """
    summary, live = run(
        model,
        source,
        output,
        preset=preset,
        duration=duration,
        max_delay=max_delay,
        annotate=annotate,
        overwrite=overwrite,
        device=device,
        precision=precision,
        batch_size=batch_size,
        seed=seed,
        overrides=set_,
    )
    # Ctrl-C is how a live watch ends; a recorded source it leaves unfinished.
    raise typer.Exit(1 if summary.broken else 130 if summary.interrupted and not live else 0)


def run(
    model_path: Path,
    source: str,
    output: Path,
    *,
    preset: str | None = None,
    duration: float | None = None,
    max_delay: float = 5.0,
    annotate: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int = 8,
    seed: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> tuple[WatchSummary, bool]:
    """Watches `source`; returns what was seen, and whether it is live. Errors of the run are AnodiffErrors."""
    from anodiff.anomaly.clip_rule import rule_of
    from anodiff.anomaly.clips import ClipDetector
    from anodiff.anomaly.streaming import DetectorScorer
    from anodiff.data.video.clip import open_clip, shown
    from anodiff.data.video.live import LiveClip
    from anodiff.engine.progress import Progress
    from anodiff.pipelines.pictures import calibrated_scale
    from anodiff.pipelines.watching import Watch, WatchOptions

    model = open_model(model_path, overrides, OPEN_KEYS)
    if model.config.video is None:
        raise ConfigError(f"{model_path}: expected a model of clips (its recipe has video), found one of images")
    detector = ClipDetector(model, preset or model.config.preset, device=device, precision=precision, seed=seed)
    rule = rule_of(detector, causal=True)
    for note in (*detector.notes, *([rule.message] if rule.message else [])):
        say(f"note: {note}", quiet)
    if rule.high is not None:
        say(f"false alarms on the normal footage that set the threshold: {rule.on_normals.sentence()}", quiet)
    if overwrite:
        remove_earlier(output)
    with open_clip(source, fps=model.config.video.fps, max_pixels=model.config.preprocess.max_pixels) as clip:
        live = isinstance(clip, LiveClip)
        options = WatchOptions(
            live=live, max_delay=max_delay, duration=duration, batch_size=batch_size, annotate=annotate
        )
        say(f"watching {shown(source)} ({describe(clip)}); Ctrl-C ends it", quiet)
        with stopping() as stop, Progress(None, "frames", "watching", quiet=quiet) as progress:
            summary = Watch(
                clip,
                DetectorScorer(detector),
                rule,
                output,
                options,
                identity=identity(model_path, source, detector),
                scale=calibrated_scale(detector.calibration),
                stop=stop,
                say=progress.note,
                progress=progress,
            ).run()
    for sentence in summary.sentences():
        say(sentence, quiet)
    say(f"wrote {output / 'events.jsonl'}", quiet)
    return summary, live


def identity(model_path: Path, source: str, detector: Any) -> dict[str, Any]:
    """What a recorded source's scores depend on: the same again is taken up where it stopped."""
    from anodiff.engine.store import Item

    return {
        "model": file_digest(model_path),
        "source": [source, Item("", source).stamp],
        "preset": detector.name,
        "settings": detector.settings.to_json(),
        "video": detector.video_settings(),
        "seed": detector.seed,
        "device": detector.denoiser.device.type,
        "compiled": detector.denoiser.compiled,
        "precision": detector.denoiser.precision,
        "network_batch": detector.denoiser.network_batch,
    }


def describe(clip: Clip) -> str:
    """Size, rate and length, as far as they are known."""
    info = clip.info
    rate = "" if info.fps is None else f", {info.fps:.3g} frames/s"
    return f"{info.width}x{info.height}{rate}{'' if info.frames is None else f', {info.frames} frames'}"


def remove_earlier(output: Path) -> None:
    """Removes what an earlier watch wrote in the folder, and nothing else."""
    from anodiff.files import storage_errors

    with storage_errors(output):
        for name in WRITTEN:
            (output / name).unlink(missing_ok=True)
        for pattern in ("annotated*.mp4", "thumbnails/event_*.jpg"):
            for path in output.glob(pattern):
                path.unlink()


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a later one raises KeyboardInterrupt, see `Stop`."""
    import threading

    from anodiff.engine.stopping import Stop

    stop = threading.Event()
    with Stop("", stop.set):
        yield stop
