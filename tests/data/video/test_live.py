"""Streams that stop and come back, against a small HTTP server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from anodiff.data.video.clip import open_clip
from anodiff.data.video.live import Gap, LiveClip, is_endless, source_of
from anodiff.errors import InputError


class Server(ThreadingHTTPServer):
    """Answers each GET of a stream with the next of ``answers``: bytes, or a status of failure; then with 404."""

    answers: list[bytes | int]


class _Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        answer = self.server.answers.pop(0) if self.server.answers else 404
        self.send_response(answer if isinstance(answer, int) else 200)
        self.send_header("Content-Type", "video/mp2t")
        if isinstance(answer, bytes) and answer[4:8] == b"ftyp":
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if isinstance(answer, bytes):
            self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Not to the terminal."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Answer) as server:
        server.answers = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def url_of(server: Server) -> str:
    return f"http://user:secret@127.0.0.1:{server.server_address[1]}/live.ts"


def live(server: Server, **options: object) -> LiveClip:
    return LiveClip(url_of(server), **{"first_wait": 0.01, "most_wait": 0.02, "silence": 5.0, **options})


def test_a_stream_that_comes_back_goes_on_and_its_gap_is_told(
    server: Server, transport_stream: Callable[[int], bytes]
) -> None:
    told: list[Gap] = []
    server.answers = [transport_stream(8), 503, transport_stream(5)]
    with live(server, on_gap=told.append, give_up=0.05) as clip:
        frames = list(clip)
    assert [frame.index for frame in frames] == list(range(13))
    times = np.array([frame.time for frame in frames])
    assert (np.diff(times) > 0).all()
    assert np.diff(times[:8]) == pytest.approx(0.04, abs=1e-6)
    assert np.diff(times[8:]) == pytest.approx(0.04, abs=1e-6)
    # The server failed once, so that the second attempt came through; then the stream was away for good.
    assert [(gap.start, gap.end) for gap in clip.gaps] == [(times[7], times[8])]
    assert clip.gaps[0].attempts == 2
    assert clip.gap_count == 1
    assert [gap.end is None for gap in told] == [True, False, True]
    assert clip.broken is not None
    assert "did not come back" in clip.broken
    assert "secret" not in clip.broken + clip.info.path + repr(told)


def test_a_source_that_never_answers_is_an_error_at_once(server: Server) -> None:
    with pytest.raises(InputError, match="expected a video, found no answer") as error, live(server) as clip:
        list(clip)
    assert "secret" not in str(error.value)


def test_packets_that_cannot_be_decoded_are_passed_over_and_counted(
    server: Server, transport_stream: Callable[[int], bytes]
) -> None:
    content = bytearray(transport_stream(12))
    middle = len(content) // 2 // 188 * 188
    for packet in range(middle, middle + 188 * 4, 188):
        content[packet + 4 : packet + 188] = b"\x00" * 184
    server.answers = [bytes(content)]
    with live(server, give_up=0.0) as clip:
        frames = list(clip)
    assert 6 <= len(frames) < 12
    assert clip.damaged > 0


def test_closing_ends_a_wait(server: Server, transport_stream: Callable[[int], bytes]) -> None:
    server.answers = [transport_stream(4)]
    with live(server, first_wait=60.0, most_wait=60.0) as clip:
        closer = threading.Timer(0.3, clip.close)
        closer.start()
        assert len(list(clip)) == 4
        closer.join()
    assert clip.broken is None


def test_a_stream_that_comes_back_larger_is_scaled_to_the_first_size(
    server: Server, transport_stream: Callable[..., bytes]
) -> None:
    server.answers = [transport_stream(4), transport_stream(4, 96, 128)]
    with live(server, give_up=0.0) as clip:
        shapes = {frame.pixels.shape for frame in clip}
    assert clip.info.height == 48
    assert shapes == {(48, 64, 3)}
    assert clip.gap_count == 1


def test_a_video_file_behind_http_has_an_end_and_a_stream_has_none(
    server: Server, transport_stream: Callable[[int], bytes], write_video: Callable[..., Path], tmp_path: Path
) -> None:
    movie = write_video(tmp_path / "a.mp4", 5).read_bytes()
    server.answers = [movie, movie]
    with open_clip(url_of(server)) as clip:
        assert len(list(clip)) == 5
    assert clip.broken is None
    server.answers = [transport_stream(4)]
    assert is_endless(url_of(server))
    assert is_endless("rtsp://camera/1")


@pytest.mark.parametrize(
    ("system", "name", "kind"),
    [("linux", "/dev/video1", "v4l2"), ("darwin", "1", "avfoundation"), ("win32", "video=1", "dshow")],
)
def test_a_camera_is_opened_by_the_system_s_own_means(system: str, name: str, kind: str) -> None:
    assert source_of("camera:1", system) == (name, {}, kind)


def test_a_camera_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="camera:97"), open_clip("camera:97") as clip:
        list(clip)
    with pytest.raises(InputError, match="by number"):
        source_of("camera:front", "linux")
