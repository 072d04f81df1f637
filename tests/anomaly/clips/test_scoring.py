"""Clips scored by a denoiser whose answer is known: it expects every square to go on by one pixel a frame."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anodiff.anomaly.clip_fit import Choice, best, separation
from anodiff.anomaly.clip_planting import KINDS, frames_needed, plant_clip
from anodiff.anomaly.clips import ClipDetector, ScoredFrame
from anodiff.anomaly.frame_scores import FrameScorer, row_scale, window_means
from anodiff.config import parse_config
from anodiff.data.video.clip import Frame
from anodiff.errors import ConfigError, InputError


def values(scored: list[ScoredFrame]) -> np.ndarray:
    return np.array([each.score for each in scored])


def test_what_the_past_announces_is_normal_and_what_it_does_not_is_found_in_its_place(world: Any) -> None:
    fast = range(12, 18)
    scored = list(world.detector().scores(world.as_clip(world.moving(24, fast=fast))))
    found = values(scored)
    others = [n for n in range(24) if n not in fast]
    assert found[list(fast)].min() > 100 * found[others].max()
    assert [each.frame.index for each in scored] == list(range(24))
    top = int(np.argwhere(world.moving(24)[0, :, :, 0] == 200)[0, 0])
    for n in fast:
        _, y, _, height = scored[n].box
        assert y <= top + 3
        assert y + height > top
    assert scored[14].map.shape == (world.SIZE, world.SIZE)


def test_the_context_of_a_frame_is_its_own(world: Any) -> None:
    """Without a past, or with that of another row, normal motion would be as surprising as a jump."""
    plain, lost = world.detector(), world.detector()
    lost.denoiser.denoiser = type(
        "Forgets", (world.GoesOn,), {"forward": lambda self, x, s, c=None: world.GoesOn.forward(self, x, s)}
    )()
    clip = world.as_clip(world.moving(12))
    assert values(list(plain.scores(clip))).max() < 0.01 * values(list(lost.scores(clip))).min()


def test_a_score_does_not_depend_on_batches_streams_or_frames_before_its_past(world: Any) -> None:
    frames = world.moving(23, fast=range(9, 14))
    whole = values(list(world.detector().scores(world.as_clip(frames))))
    for size in (1, 3, 50):
        assert np.array_equal(values(list(world.detector().scores(iter(world.as_clip(frames)), size))), whole)
    later = values(list(world.detector().scores(world.as_clip(frames)[8:])))
    assert np.array_equal(later[1:], whole[9:])


def test_frames_without_enough_past_take_the_first_score_and_thinned_ones_the_last(world: Any) -> None:
    found = values(list(world.detector(past=2, step=2).scores(world.as_clip(world.moving(12, fast=range(5, 8))))))
    assert (found[:4] == found[4]).all()
    assert len(set(found[4:8])) > 1
    thinned = values(list(world.detector(fps=10.0).scores(world.as_clip(world.moving(20), fps=20.0), 4)))
    assert (thinned[3::2] == thinned[2::2]).all()
    assert len(thinned) == 20


def test_after_a_gap_the_past_begins_anew_and_frames_without_it_have_no_score(world: Any) -> None:
    frames = world.moving(40)
    for missing, lost in ((4, []), (5, [12, 13])):  # five intervals are borne, six are a gap
        clip = [frame for frame in world.as_clip(frames) if not 12 <= frame.index < 12 + missing]
        scored = list(world.detector(past=2, step=1).scores(clip, 3))
        found = values(scored)
        assert np.flatnonzero(np.isnan(found)).tolist() == lost
        assert [each.basis for each in scored[:3]] == ["taken", "taken", "own"]
        for each in scored:
            nothing = each.basis == "none"
            assert np.isnan(each.map).all() == nothing
            assert (each.box[2] == 0) == nothing
        if lost:  # and what follows is what it would be in a clip of its own
            later = values(list(world.detector(past=2, step=1).scores(clip[12:])))
            assert np.array_equal(found[14:], later[2:])
            assert found[14:].max() < 2 * found[:12].max()


def test_a_gap_before_the_first_score_leaves_the_frames_before_it_without(world: Any) -> None:
    clip = [frame for frame in world.as_clip(world.moving(30), 10.0) if frame.index in (0, 1) or frame.index > 12]
    found = values(list(world.detector(past=2, step=1, fps=10.0).scores(clip)))
    assert np.flatnonzero(np.isnan(found)).tolist() == [0, 1, 2, 3]
    thinned = values(
        list(
            world.detector(past=1, step=1, fps=10.0).scores(
                world.as_clip(world.moving(20), 20.0)[:9] + world.as_clip(world.moving(60), 20.0)[40:]
            )
        )
    )
    assert np.flatnonzero(np.isnan(thinned)).tolist() == [9, 10]
    alone = [Frame(n, 9.0**n, pixels) for n, pixels in enumerate(world.moving(4))]
    with pytest.raises(InputError, match="without a gap at the model's rate, found 4 with gaps"):
        list(world.detector(past=1, step=1, fps=10.0).scores(alone))


def test_frames_that_were_scored_before_are_read_and_not_scored_again(world: Any) -> None:
    twice = world.as_clip(world.moving(40, fast=range(9, 14)), 20.0)
    clips = {
        "thinned": twice,
        "gap": [frame for frame in twice if not 16 <= frame.index < 30],
        "early gap": [twice[0], *twice[14:]],
    }
    for name, clip in clips.items():
        whole = list(world.detector(past=2, step=1, fps=10.0).scores(clip, 3))
        for skip in range(len(clip) + 1):
            found = world.detector(past=2, step=1, fps=10.0)
            scored = list(found.scores(clip, 3, ahead=skip % 3, skip=skip))
            assert [each.frame.index for each in scored] == [frame.index for frame in clip[skip:]], (name, skip)
            for one, other in zip(scored, whole[skip:], strict=True):
                assert (one.box, one.basis) == (other.box, other.basis)
                assert np.array_equal(one.map, other.map, equal_nan=True)
                assert np.array_equal(one.score, other.score, equal_nan=True)
    seen: list[int] = []
    counting = world.detector()
    see = counting.see
    counting.see = lambda frames: seen.append(len(frames)) or see(frames)  # type: ignore[func-returns-value]
    list(counting.scores(twice, 16, skip=30))
    assert sum(seen) == 11  # one more, for frames that would take its score


def test_reading_ahead_changes_nothing_and_ends_with_the_clip(world: Any) -> None:
    frames = world.moving(23, fast=range(9, 14))
    whole = values(list(world.detector().scores(world.as_clip(frames))))
    for ahead in (1, 40):
        found = world.detector()
        assert np.array_equal(values(list(found.scores(iter(world.as_clip(frames)), 4, ahead=ahead))), whole)
        assert found.busy > 0

    def torn() -> Iterator[Frame]:
        yield from world.as_clip(frames)[:6]
        raise InputError("frame 6 is torn")

    with pytest.raises(InputError, match="frame 6 is torn"):
        list(world.detector().scores(torn(), ahead=4))
    assert not [thread for thread in threading.enumerate() if thread.name == "anodiff-ahead"]


def test_clips_that_cannot_be_scored_say_why(world: Any) -> None:
    with pytest.raises(InputError, match="at least 2 frames without a gap at the model's rate, found 1"):
        list(world.detector().scores(world.as_clip(world.moving(1))))
    images = world.model()
    images.config = parse_config({"name": "images"})
    with pytest.raises(ConfigError, match="expected a model of clips, found one of images"):
        ClipDetector(images, device="cpu")
    wrong = world.model()
    wrong.config = parse_config({**world.RECIPE, "presets": {"default": {"residual": "features"}}})
    with pytest.raises(ConfigError, match="found residual 'features'"):
        ClipDetector(wrong, device="cpu")


def test_window_means_are_those_of_every_whole_window() -> None:
    maps = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(0))
    found = window_means(maps, 3, (1, 2, 5, 6))
    assert found.shape == (2, 3, 4)
    for row in range(3):
        for column in range(4):
            direct = maps[:, 1 + row : 4 + row, 2 + column : 5 + column].double().mean(dim=(1, 2))
            torch.testing.assert_close(found[:, row, column], direct)
    assert window_means(maps, 20).shape == (2, 1, 1)


def test_bands_make_near_and_far_alike() -> None:
    """Near the camera (below) everything errs more: without bands, what is anomalous far away is never seen."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.linspace(0.1, 3.0, 32).reshape(1, 32, 1)
    normal = depth * torch.rand(40, 32, 24, generator=generator)
    far = normal.clone()
    far[:, 4:8, 10:14] += 0.6
    plain = FrameScorer.plain(4, 1)
    banded = FrameScorer(torch.ones(1), 4, row_scale(normal, 4))
    assert float(banded.band_scale.mean()) == pytest.approx(1)  # type: ignore[union-attr]
    assert float(separation(plain, normal, [far])) < 0.7
    assert float(separation(banded, normal, [far])) > 0.9
    assert row_scale(torch.zeros(2, 8, 8), 2).tolist() == [1.0] * 8


def test_separation_is_the_auroc() -> None:
    generator = torch.Generator().manual_seed(0)
    normal, planted = torch.rand(20, 8, 8, generator=generator), torch.rand(6, 8, 8, generator=generator) + 0.02
    scorer = FrameScorer.plain(3, 1)
    scores = [scorer.frames(maps)[0] for maps in (normal, planted)]
    expected = roc_auc_score([0] * 20 + [1] * 6, torch.cat(scores))
    assert float(separation(scorer, normal, [planted])) == pytest.approx(expected)


def test_bands_must_be_clearly_better() -> None:
    plain = Choice(FrameScorer.plain(4, 1), torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64))
    bands = FrameScorer(torch.ones(1), 8, torch.ones(8))
    hardly = Choice(bands, plain.separation + torch.tensor([0.06, -0.05, 0.05, -0.04]))
    clearly = Choice(bands, plain.separation + 0.05 + torch.tensor([0.01, 0.0, -0.01, 0.0]))
    assert best([plain, hardly]) is plain
    assert best([plain, clearly]) is clearly


@pytest.mark.parametrize("kind", KINDS)
def test_planted_episodes_change_what_they_should_and_repeat(kind: str, world: Any) -> None:
    clip = world.moving(60, 3).transpose(0, 3, 1, 2)
    episode = plant_clip(clip, kind, 8, 3, seed=5)
    assert episode.frames.shape == (11, 1, world.SIZE, world.SIZE)
    assert episode.frames.dtype == np.uint8
    assert np.array_equal(plant_clip(clip, kind, 8, 3, seed=5).frames, episode.frames)
    assert not np.array_equal(plant_clip(clip, kind, 8, 3, seed=6).frames, episode.frames)
    scenes = [clip[start : start + 11] for start in range(len(clip) - 11)]
    assert all((scene != episode.frames).any() for scene in scenes)
    if kind == "faster":  # the past is as it was; then frames of the clip come in leaps
        assert any(np.array_equal(scene[:3], episode.frames[:3]) for scene in scenes)
        assert all(any(np.array_equal(frame, known) for known in clip) for frame in episode.frames)
    with pytest.raises(ValueError, match="at least"):
        plant_clip(clip[: frames_needed(8, 3) - 1], kind, 8, 3, seed=0)
    with pytest.raises(ValueError, match="expected one of"):
        plant_clip(clip, "unknown", 8, 3, seed=0)
