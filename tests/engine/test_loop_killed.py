"""The loop killed at random moments: nothing is lost, nothing is done twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from anodiff.engine.store import ResultStore

KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from loop_jobs import Lengths, run
from anodiff.engine.store import Item

class Logged(Lengths):
    def read(self, item):
        with open({log!r}, "a") as log:
            log.write(item.id + "\\n")
        return super().read(item)
    def compute(self, batch):
        time.sleep(0.02)
        return super().compute(batch)
    def write(self, item, computed):
        from anodiff.files import atomic_write
        time.sleep(0.002)
        atomic_write(self.out / (item.id + ".out"), str(computed) * 10000)
        return {{"score": computed / 7, "files": [item.id + ".out"]}}

out = Path(sys.argv[1])
items = [Item(p.name, str(p)) for p in sorted(Path({inputs!r}).iterdir())]
run(out, items, Logged(out), batch_size=2)
"""


def test_killed_at_random_moments_it_ends_with_the_same_table(tmp_path: Path) -> None:
    inputs, log = tmp_path / "in", tmp_path / "log"
    inputs.mkdir()
    for n in range(40):
        (inputs / f"f{n:02d}").write_text("bad" if n % 9 == 4 else "x" * n)
    code = KILLED.format(tests=str(Path(__file__).parent), log=str(log), inputs=str(inputs))

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(out)])

    assert start(tmp_path / "calm").wait() == 0
    moment, out, kills = random.Random(7), tmp_path / "killed", 0
    while True:
        log.write_text("")
        finished = recorded(out)
        process = start(out)
        wait_for(log, process)
        time.sleep(moment.uniform(0, 0.15))
        if kills == 5 or process.poll() is not None:
            assert process.wait() == 0
            break
        process.kill()
        process.wait()
        kills += 1
        assert not finished & set(log.read_text().split()), "something finished was done twice"
    assert kills >= 2
    assert len(finished) > 0
    calm, killed = ((tmp_path / name / "scores.csv").read_bytes() for name in ("calm", "killed"))
    assert calm == killed
    for path in (tmp_path / "calm").glob("*.out"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert not list(out.rglob("*.anodiff-part"))


def recorded(out: Path) -> set[str]:
    """Ids that a killed run left as finished."""
    if not (out / ".anodiff" / "results.sqlite").exists():
        return set()
    with ResultStore.open(out, {"job": "lengths"}) as store:
        return {id_ for id_, status in store._select("SELECT id, status FROM results") if status == "ok"}


def wait_for(log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the run has begun to read."""
    while process.poll() is None and not log.read_text():
        time.sleep(0.005)
