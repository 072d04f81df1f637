"""The loop behind `anodiff watch`: frames in, events out as JSON lines, with bounded delay and memory.

A thread reads; the caller's thread scores, decides and writes. A recorded source can be taken up again after a kill:
the scores of its frames are kept, and everything else follows from them.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time as clocks
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anodiff.anomaly.event_rule import EventRule
from anodiff.anomaly.events import Event, EventTracker, Sample, live_smoother, map_box
from anodiff.anomaly.streaming import Backlog, ClipScorer, Scored, Window
from anodiff.data.video.clip import Clip, ClipInfo
from anodiff.files import make_folder, write_json
from anodiff.pipelines.clip_reporting import axis_of
from anodiff.pipelines.event_files import write_events_csv
from anodiff.pipelines.event_lines import EventLines, event_json
from anodiff.pipelines.watch_journal import Journal
from anodiff.pipelines.watch_summary import WatchSummary
from anodiff.visualize.clips import AnnotatedVideo, save_thumbnail, thumbnail
from anodiff.visualize.heatmap import HeatScale

if TYPE_CHECKING:
    from anodiff.engine.progress import Progress

#: seconds between looks at the clock while nothing comes
TICK = 0.25
#: of frames that wait to be scored, at most, whatever their size
WAITING_BYTES = 1 << 29


@dataclass(frozen=True)
class WatchOptions:
    """How a source is watched.

    Attributes:
        live: frames come whether there is time for them or not: late ones are dropped. Else the source waits.
        max_delay: seconds from reading a frame to deciding on it, aimed at by dropping; live only.
        duration: seconds of the source after which to end; None = never.
        batch_size: frames scored at once, at most; does not change results.
        update_s: seconds of the source between updates of an event that goes on.
        silence_s: seconds without a frame after which a live source is reported as lost.
        room: frames that wait to be scored, at most; fewer where they would fill more than 512 MiB.
        annotate: write annotated.mp4.
        pixel_threshold: of maps, for boxes of scorers that give none.
    """

    live: bool = True
    max_delay: float = 5.0
    duration: float | None = None
    batch_size: int = 8
    update_s: float = 1.0
    silence_s: float = 5.0
    room: int = 256
    annotate: bool = False
    pixel_threshold: float | None = None


@dataclass(frozen=True)
class _Gap:
    start: float
    end: float


@dataclass(frozen=True)
class _Arrived:
    window: Window
    at: float


class Watch:
    """Watches one clip with one scorer and one rule; `run` does it.

    Args:
        clip: read to its end, and closed.
        scorer: frames to scores.
        rule: causal, see `live_smoother`.
        output: folder: events.jsonl, thumbnails/, summary.json; of recorded sources
            events.csv and frames.csv; annotated.mp4.
        options: see there.
        identity: what decides the scores, as plain values; a recorded source is taken up again only where it agrees.
        scale: of the maps, for pictures.
        stop: set from anywhere, it ends the watch.
        say: told what an operator should know at once.
        progress: counts frames.

    Raises:
        ConfigError: the rule looks ahead. StorageError: see `Journal`.
    """

    def __init__(
        self,
        clip: Clip,
        scorer: ClipScorer,
        rule: EventRule,
        output: Path,
        options: WatchOptions,
        *,
        identity: dict[str, Any] | None = None,
        scale: HeatScale | None = None,
        stop: threading.Event | None = None,
        say: Callable[[str], None] = lambda text: None,
        progress: Progress | None = None,
    ) -> None:
        self.clip, self.scorer, self.rule, self.options = clip, scorer, rule, options
        self.folder = make_folder(output)
        self.scale, self.say, self.progress = scale, say, progress
        self.stop = stop or threading.Event()
        self.summary = WatchSummary(asked=rule.rate if rule.high is not None else None)
        self._smoother = live_smoother(rule)
        self._backlog = Backlog(room_for(options.room, clip.info), options.max_delay, drop=options.live)
        self._journal: Journal | None = None
        if not options.live:
            self._journal = Journal.open(self.folder, {"rule": rule.to_json(), **(identity or {})})
        self._lines = EventLines(self.folder / "events.jsonl", live=options.live)
        self._tracker = EventTracker(rule, clip.info.path, update_s=options.update_s, number=self._lines.number)
        self._best: tuple[Window, Scored | None] | None = None
        self._events: list[Event] = []
        self._video: AnnotatedVideo | None = None
        self._error: BaseException | None = None
        self._over = threading.Event()
        self._heard = clocks.monotonic()
        self._lost = False
        #: frames in hand whose scores an earlier run computed
        self._taken: set[int] = set()

    def run(self) -> WatchSummary:
        """Watches until the source ends, the duration is over or `stop` is set.

        Raises:
            StorageError: results cannot be written. InputError: the source cannot be read at all.
        """
        reader = threading.Thread(target=self._read, name="anodiff-watch-read", daemon=True)
        with contextlib.ExitStack() as stack:
            if self._journal is not None:
                stack.callback(self._journal.close)
            stack.callback(self._lines.close)
            stack.callback(self._end_reading, reader)
            if self.options.annotate:
                self._video = stack.enter_context(self._annotated())
            reader.start()
            self._work()
            self._tell(self._tracker.finish())
        if self._error is not None:
            raise self._error
        summary = self.summary
        summary.dropped, summary.interrupted = self._backlog.dropped, self.stop.is_set()
        summary.waiting = summary.frames - summary.scored - summary.dropped - summary.unscored
        summary.broken = self.clip.broken
        if self._journal is not None and not summary.interrupted:
            self._journal.write_frames(self.folder / "frames.csv", self.clip.info.path, self._spans())
            write_events_csv(self.folder / "events.csv", self._events)
        write_json(self.folder / "summary.json", summary.to_json())
        return summary

    def _read(self) -> None:
        """In its own thread: every frame enters the past, those that can be scored wait for it."""
        summary, first, last = self.summary, None, None
        try:
            for frame in self.clip:
                if self.stop.is_set() or self._over.is_set():
                    return
                first = frame.time if first is None else first
                if self.options.duration is not None and frame.time - first >= self.options.duration:
                    return
                if last is not None and frame.time - last > self.rule.settings.max_gap_s:
                    self._backlog.put(_Gap(last, frame.time), keep=True)
                elif last is not None:
                    summary.seconds += frame.time - last
                last, self._heard = frame.time, clocks.monotonic()
                summary.frames += 1
                window = self.scorer.window(frame)
                if window is None:
                    summary.unscored += 1
                else:
                    self._backlog.put(_Arrived(window, clocks.monotonic()))
        except BaseException as error:
            self._error = error
        finally:
            self._backlog.close()

    def _work(self) -> None:
        """Takes what waits until all is over."""
        began = clocks.monotonic()
        while not self.stop.is_set():
            entries = self._backlog.take(self.options.batch_size, TICK)
            if entries is None:
                return
            self._found(entries)
            now = clocks.monotonic()
            if self.options.live and now - self._heard > self.options.silence_s:
                self._lose()
            over = self.options.duration is not None and now - began > self.options.duration + self.options.max_delay
            if self.options.live and over:
                return

    def _found(self, entries: list[Any]) -> None:
        """Scores windows, in order with the gaps between them."""
        if entries:
            self._lost = False
        for is_window, group in itertools.groupby(entries, lambda entry: isinstance(entry, _Arrived)):
            if is_window:
                arrived = list(group)
                for entry, scored in zip(arrived, self._scored([one.window for one in arrived]), strict=True):
                    self._decide(entry, scored)
                if self._journal is not None:
                    self._journal.flush()
            else:
                for gap in group:
                    self._bridge(gap)

    def _scored(self, windows: list[Window]) -> list[Scored]:
        """Scores: of this run, or of an earlier one that was cut off."""
        journal = self._journal
        if journal is None:
            return self.scorer.score(windows)
        known = [journal.known(window.frame.index, window.frame.time) for window in windows]
        if self._video is not None:  # whose maps are not kept
            return self.scorer.score(windows)
        if self.progress is not None:
            self.progress.skip(len(known) - known.count(None))
            self._taken = {window.frame.index for window, one in zip(windows, known, strict=True) if one is not None}
        fresh = iter(
            self.scorer.score([w for w, k in zip(windows, known, strict=True) if k is None]) if None in known else []
        )
        return [one if one is not None else next(fresh) for one in known]

    def _decide(self, arrived: _Arrived, scored: Scored) -> None:
        window, options = arrived.window, self.options
        box = scored.box
        if box is None and options.pixel_threshold is not None and scored.map.size:
            box = map_box(scored.map, options.pixel_threshold, window.frame.pixels.shape[:2])
        smoothed = self._smoother.push(scored.time, scored.score)
        if self._journal is not None:
            self._journal.add(scored, smoothed, box)
        changes = self._tracker.push(Sample(scored.index, scored.time, scored.score, smoothed, box))
        # the picture of an event that ends here is still its own, though the next one may begin with this frame
        self._tell([change for change in changes if change[0] == "end"])
        if self._tracker.peak_frame == scored.index:
            self._best = window, scored if scored.map.size else None
        self._tell([change for change in changes if change[0] != "end"])
        if self._video is not None:
            event = self._tracker.current
            self._video.write(window.frame.pixels, scored.time, smoothed, anomaly_map=scored.map, box=box, event=event)
        self.summary.scored += 1
        self.summary.worst_delay = max(self.summary.worst_delay, clocks.monotonic() - arrived.at)
        if self.progress is not None:
            waiting = {"dropped": self._backlog.dropped} if self._backlog.dropped else {}
            found = "excursions" if self.rule.high is None else "events"
            self.progress.update(int(scored.index not in self._taken), **{found: self._tracker.number}, **waiting)

    def _bridge(self, gap: _Gap) -> None:
        """The source was away: what went on has ended, and the past does not count."""
        self._tell(self._tracker.finish())
        self._smoother.reset()
        self.summary.gaps += 1
        self.summary.gap_seconds += gap.end - gap.start
        self._lines.write({"type": "gap", "start": gap.start, "end": gap.end, "seconds": gap.end - gap.start})
        self.say(f"the source was away for {gap.end - gap.start:.1f} s, from {gap.start:.1f} s on")

    def _lose(self) -> None:
        """Nothing has come for a while: an event is not left open meanwhile."""
        if self._lost:
            return
        self._lost = True
        self._tell(self._tracker.finish())
        self._lines.write({"type": "lost", "seconds": self.options.silence_s})
        self.say(f"no frame for {self.options.silence_s:g} s: waiting for the source to come back")

    def _tell(self, changes: list[tuple[Any, Event]]) -> None:
        for kind, event in changes:
            name = f"thumbnails/event_{event.number:06d}.jpg"
            if kind != "update" and self._best is not None:
                self._picture(self.folder / name, event)
            self._lines.write({"type": kind, **event_json(event), "thumbnail": name})
            if kind == "begin":
                self.summary.events += 1
            elif kind == "end" and not self.options.live:
                self._events.append(replace(event, thumbnail=name))

    def _picture(self, path: Path, event: Event) -> None:
        assert self._best is not None
        window, scored = self._best
        if scored is None:
            # its score is from an earlier run, its map is not: a score is a function of the pixels, so this is the same
            scored = self.scorer.score([window])[0]
            self._best = window, scored
        make_folder(path.parent)
        save_thumbnail(path, thumbnail(window.frame.pixels, anomaly_map=scored.map, scale=self.scale, box=event.box))

    def _annotated(self) -> AnnotatedVideo:
        info, axis = self.clip.info, axis_of(self.rule)
        path = free_name(self.folder, "annotated") if self.options.live else self.folder / "annotated.mp4"
        return AnnotatedVideo(path, (info.height, info.width), axis, scale=self.scale, growing=self.options.live)

    def _end_reading(self, reader: threading.Thread) -> None:
        self._over.set()
        self._backlog.close()
        if self.options.live:
            self.clip.close()  # only asks a live source to end, while the thread may still wait for it
        if reader.ident is not None:
            reader.join(2.0)  # a thread that waits for a network does not keep the operator waiting
        if not reader.is_alive():
            self.clip.close()  # a decoder is not taken away from a thread that uses it

    def _spans(self) -> list[tuple[float, float]] | None:
        return None if self.rule.high is None else [(event.start, event.end) for event in self._events]


def room_for(room: int, info: ClipInfo) -> int:
    """How many frames may wait: ``room``, or as many as WAITING_BYTES hold, at least one."""
    return max(1, min(room, WAITING_BYTES // max(1, info.height * info.width * info.channels)))


def free_name(folder: Path, stem: str) -> Path:
    """annotated.mp4, or where that is there annotated_2.mp4, ...: what an earlier watch saw is kept."""
    names = itertools.chain([f"{stem}.mp4"], (f"{stem}_{number}.mp4" for number in itertools.count(2)))
    return next(folder / name for name in names if not (folder / name).exists())
