"""The one loop read -> batch -> compute -> write -> record that every job runs in.

A job supplies four plain steps (see `Job`); reading and writing happen in threads beside the device, queues are
bounded, one bad input costs one failed row, and the store makes the run resumable at any moment.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from anodiff.engine.progress import Progress
from anodiff.engine.stopping import Stop, Stopped
from anodiff.engine.store import Item
from anodiff.errors import AnodiffError, ConfigError, ModelFileError, StorageError
from anodiff.files import storage_errors

Loaded = TypeVar("Loaded")
Computed = TypeVar("Computed")

NAMED = 3  # failures that a summary names
RUN_ENDING = (StorageError, ConfigError, ModelFileError)  # these are about the run, never about one input


class Job(Protocol[Loaded, Computed]):
    """What a job supplies. `read` and `write` run in threads, `compute` in the caller's thread."""

    def read(self, item: Item) -> Loaded:
        """Reads and prepares one input; raises InputError where it cannot be used."""

    def compute(self, batch: list[Loaded]) -> Sequence[Computed]:
        """Results of a batch, in order, on the CPU. A result must not depend on its batch mates."""

    def write(self, item: Item, computed: Computed) -> Mapping[str, Any]:
        """Writes the files of one result atomically -> its row: columns, and "files", their paths below the folder."""


class Record(Protocol):
    """What the loop needs of a store; see `ResultStore`."""

    def begin(self, items: Sequence[Item]) -> set[str]:
        """Ids that need no work."""

    def record(self, item: Item, row: Mapping[str, Any], stamp: str) -> None:
        """Keeps one row."""

    def counts(self) -> dict[str, int]:
        """Number of kept rows by status."""


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        ok, failed, skipped: rows by status, over the whole output folder.
        resumed: rows that an earlier run had finished.
        seconds: wall time of this run.
        images_per_second: inputs finished by this run per second of wall time.
        device_busy_share: share of the wall time spent in `compute`: the network and what is done around it on the
            device (noise, comparison, maps); the rest is waiting for reading and writing. Where the device is a CPU it
            says nothing of what the other threads take from it: `beside_share` does.
        interrupted: the run was asked to stop before its end.
        failures: a sentence for each input that failed in this run, with its path, in the order of the items.
        processor_seconds: processor time of the process during this run, all threads together.
        beside_seconds: of it, what was spent beside `compute`: reading, writing, recording and feeding.
    """

    ok: int
    failed: int
    skipped: int
    resumed: int
    seconds: float
    images_per_second: float
    device_busy_share: float
    interrupted: bool
    failures: tuple[str, ...] = ()
    processor_seconds: float = 0.0
    beside_seconds: float = 0.0

    @property
    def beside_share(self) -> float | None:
        """Share of the processor time spent beside `compute`; None where it was not measured."""
        return min(1.0, self.beside_seconds / self.processor_seconds) if self.processor_seconds > 0 else None

    def with_whole(self, processor_seconds: float) -> Summary:
        """The same of a whole job that took so much processor time: start and report count as beside."""
        more = max(0.0, processor_seconds - self.processor_seconds)
        return replace(
            self,
            processor_seconds=self.processor_seconds + more,
            beside_seconds=self.beside_seconds + more,
        )

    @property
    def exit_code(self) -> int:
        """0 when all is well, 1 when some inputs failed, 130 when interrupted."""
        return 130 if self.interrupted else int(self.failed > 0)

    def sentence(self, unit: str = "images") -> str:
        """The summary for a reader, one line; before it, a line each, the first failures. unit: what an input is."""
        lines = list(self.failures[:NAMED])
        if len(self.failures) > NAMED:
            lines.append(f"... and {len(self.failures) - NAMED} more, each with its error in the table of results")
        parts = [f"{self.ok} ok", f"{self.failed} failed"]
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{self.resumed} of them from an earlier run"] if self.resumed else []
        speed = f"{self.images_per_second:.3g} {unit}/s end to end, device busy {self.device_busy_share:.0%}"
        if self.beside_share is not None:
            speed += f", {self.beside_share:.0%} of processor time spent starting, reading and writing"
        if self.resumed and not self.images_per_second:
            speed = "nothing was computed in this run"
        return "\n".join([*lines, f"{', '.join(parts)}; {speed}{'; interrupted' if self.interrupted else ''}"])


def run_job(
    job: Job[Loaded, Computed],
    items: Sequence[Item],
    store: Record,
    *,
    workers: int = 2,
    batch_size: int = 16,
    ahead: int | None = None,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Summary:
    """Runs `job` over `items` and records every row in `store`; items finished by an earlier run are not touched.

    Any exception in reading, computing or writing one item makes it a failed row. Ctrl-C and SIGTERM finish the
    batch in hand and return an interrupted summary, a second one ends it without the batch (see `Stop`), so that the
    caller writes its tables in each case; a third does not wait for the writing threads either. Rows recorded so far
    are safe throughout.

    Args:
        workers: reading threads, and as many writing threads.
        batch_size: items handed to `compute` at once (a short batch only at the end, or where inputs failed to read).
        ahead: items that may be read before they are computed, and as many results that may wait to be written; by
            default two batches of each, and an item a reader. For large items 1.
        stop: knows when the run was asked to stop, for a job whose batches take long: it then raises `Stopped`.

    Raises:
        StorageError: results cannot be written; what was computed before is recorded where possible.
        ConfigError, ModelFileError: the job's settings cannot be honoured.
    """
    progress = progress if progress is not None else Progress(len(items), quiet=True)
    began, processor = time.monotonic(), time.process_time()
    beside = _Meter()
    feeding = time.thread_time()
    done = store.begin(items)
    todo = [item for item in items if item.id not in done]
    progress.skip(len(done))
    busy = 0.0
    stop = stop or Stop()
    with (
        stop,
        stop.ending(),
        _Writers(job, store, progress, workers, ahead or 2 * batch_size, beside) as writers,
        contextlib.closing(
            _batches(job, todo, workers, batch_size, ahead or 2 * batch_size + workers, stop, writers, beside)
        ) as batches,
    ):
        for batch in batches:
            started = time.monotonic()
            beside.add(time.thread_time() - feeding)
            try:
                outcomes = _compute(job, [entry.loaded for entry in batch])
            except Stopped:
                break
            finally:
                busy += time.monotonic() - started
                feeding = time.thread_time()
            for entry, outcome in zip(batch, outcomes, strict=True):
                writers.put(entry.item, entry.stamp, outcome)
    beside.add(time.thread_time() - feeding)
    seconds = max(time.monotonic() - began, 1e-9)
    counts = store.counts()
    return Summary(
        ok=counts.get("ok", 0),
        failed=counts.get("failed", 0),
        skipped=counts.get("skipped", 0),
        resumed=len(done),
        seconds=seconds,
        images_per_second=writers.finished / seconds,
        device_busy_share=busy / seconds,
        interrupted=stop.insisted or (stop.asked and sum(counts.values()) < len(items)),
        failures=tuple(writers.errors[item.id] for item in todo if item.id in writers.errors),
        processor_seconds=time.process_time() - processor,
        beside_seconds=beside.seconds,
    )


def _failure(path: str, error: str) -> str:
    """A failed row as a line; most sentences name the path themselves."""
    return f"failed: {error if path in error else f'{path}: {error}'}"


def sentence_of(error: BaseException) -> str:
    """An exception as one sentence on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, AnodiffError) and text:
        return text
    if type(error).__name__ == "OutOfMemoryError":
        return "out of device memory: a smaller --set engine.network_batch=N needs less"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Meter:
    """Processor seconds that the threads beside `compute` report.

    They are told apart by thread, since what is left to `compute` is then its own thread and those of its kernels.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Adds processor time of the calling thread."""
        with self._lock:
            self.seconds += seconds


@dataclass(frozen=True)
class _Read(Generic[Loaded]):
    item: Item
    stamp: str
    loaded: Loaded


def _batches(
    job: Job[Loaded, Computed],
    todo: Sequence[Item],
    workers: int,
    batch_size: int,
    ahead: int,
    stop: Stop,
    writers: _Writers,
    beside: _Meter,
) -> Generator[list[_Read[Loaded]], None, None]:
    """Batches of read items, in order, read ahead by so many; unreadable ones go straight to the writers."""

    def read(item: Item) -> _Read[Loaded]:
        began = time.thread_time()
        try:
            return _Read(item, item.stamp, job.read(item))
        finally:
            beside.add(time.thread_time() - began)

    pending: deque[tuple[Item, Future[_Read[Loaded]]]] = deque()
    waiting = deque(todo)
    batch: list[_Read[Loaded]] = []
    readers = ThreadPoolExecutor(workers, thread_name_prefix="anodiff-read")
    try:
        while (waiting or pending) and not stop.asked:
            while waiting and len(pending) < ahead:
                item = waiting.popleft()
                pending.append((item, readers.submit(read, item)))
            item, future = pending.popleft()
            try:
                batch.append(future.result())
            except RUN_ENDING:
                raise
            except Exception as error:
                writers.put(item, item.stamp, error)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch and not stop.asked:
            yield batch
    finally:
        readers.shutdown(wait=True, cancel_futures=True)


def _compute(job: Job[Loaded, Computed], batch: list[Loaded]) -> list[Computed | Exception]:
    """Results of the batch; if it fails as a whole each item is tried alone, so that only the guilty one fails."""
    try:
        results = list(job.compute(batch))
        if len(results) != len(batch):
            raise RuntimeError(f"the job returned {len(results)} results for {len(batch)} inputs")
        return list(results)
    except RUN_ENDING:
        raise
    except Exception as error:
        if len(batch) == 1:
            return [error]
        return [outcome for loaded in batch for outcome in _compute(job, [loaded])]


class _Writers:
    """Threads that write results and record their rows, fed by a bounded queue."""

    def __init__(
        self, job: Job[Any, Any], store: Record, progress: Progress, threads: int, depth: int, beside: _Meter
    ) -> None:
        self._job, self._store, self._progress, self._beside = job, store, progress, beside
        self._queue: queue.Queue[tuple[Item, str, Any] | None] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        # daemons: after a second Ctrl-C nothing waits for them, and the store bears being cut off
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        self.finished = 0
        self.errors: dict[str, str] = {}

    def __enter__(self) -> _Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for _thread in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def put(self, item: Item, stamp: str, outcome: Any) -> None:
        """Queues a result, or the exception that took its place; raises what ended the writing, if anything did."""
        if self._error is not None:
            raise self._error
        self._queue.put((item, stamp, outcome))

    def _work(self) -> None:
        try:
            self._empty()
        finally:
            self._beside.add(time.thread_time())  # all that this thread ever took

    def _empty(self) -> None:
        while (entry := self._queue.get()) is not None:
            if self._error is not None:  # keep emptying the queue, so that nobody waits for room in it
                continue
            item, stamp, outcome = entry
            try:
                row = self._row(item, outcome)
                self._store.record(item, row, stamp)
                with self._lock:
                    self.finished += 1
                    if row["status"] == "failed":
                        self.errors[item.id] = _failure(item.path, str(row.get("error", "")))
                self._progress.update(1, **({"failed": len(self.errors)} if self.errors else {}))
            except BaseException as error:
                self._error = error

    def _row(self, item: Item, outcome: Any) -> dict[str, Any]:
        head = {"id": item.id, "path": item.path}
        if not isinstance(outcome, Exception):
            try:
                with _full_disk(item):
                    return {**head, "status": "ok", **self._job.write(item, outcome)}
            except RUN_ENDING:
                raise
            except Exception as error:
                outcome = error
        return {**head, "status": "failed", "error": sentence_of(outcome)}


def _full_disk(item: Item) -> Any:
    """OSErrors that escape from a job's `write` are about the output, hence about the run."""
    return storage_errors(f"the results of {item.path}")
