"""Frame AUROC, micro and macro, against scikit-learn; alarms and events by hand; what padding and min-max do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from anodiff.errors import DataError
from anodiff.metrics.alarms import (
    AlarmPool,
    alarms_at,
    evaluate_alarms,
    evaluate_events,
    events_at,
    false_alarms,
    normal_hours,
)
from anodiff.metrics.frames import ClipScores, MacroPool, clip_scores, evaluate_frames, frame_pool, per_clip_table


def made(n_clips: int = 6, n: int = 40, seed: int = 0) -> list[ClipScores]:
    """Clips with both classes, one all normal and one all anomalous; scores are ties now and then."""
    rng = np.random.default_rng(seed)
    clips = []
    for k in range(n_clips):
        truth = np.zeros(n + k, dtype=bool)
        truth[10 : 20 + k] = k != 0
        truth[:] |= k == 1
        scores = np.round(rng.normal(size=n + k) + truth + 0.3 * k, 1)
        clips.append(clip_scores(f"clip{k}", scores, truth, fps=10))
    return clips


def test_micro_and_macro_are_scikit_learn_s() -> None:
    clips = made()
    found = evaluate_frames(clips, n_boot=20)
    truth, scores = (np.concatenate([getattr(clip, name) for clip in clips]) for name in ("truth", "scores"))
    assert found["frame_auroc_micro"] == pytest.approx(roc_auc_score(truth, scores))
    assert found["frame_ap_micro"] == pytest.approx(average_precision_score(truth, scores))
    both = [clip for clip in clips if 0 < clip.truth.mean() < 1]
    assert len(both) == 4
    macro = np.mean([roc_auc_score(clip.truth, clip.scores) for clip in both])
    assert found["frame_auroc_macro"] == pytest.approx(macro)
    assert (found["n_clips"], found["n_clips_one_class"], found["n_frames"]) == (6, 2, len(truth))
    low, high = found["frame_auroc_micro_ci95"]
    assert low < found["frame_auroc_micro"] < high
    assert not found["reasons"]


def test_options_are_in_the_names_and_do_what_they_say() -> None:
    clips = made()
    found = evaluate_frames(clips, padded=True, per_clip_minmax=True, n_boot=5)
    stretched = [(clip.scores - clip.scores.min()) / np.ptp(clip.scores) for clip in clips]
    truth = np.concatenate([clip.truth for clip in clips])
    assert found["frame_auroc_micro_per_clip_minmax"] == pytest.approx(roc_auc_score(truth, np.concatenate(stretched)))
    padded = [
        roc_auc_score([0, *clip.truth, 1], [0, *scores, 1]) for clip, scores in zip(clips, stretched, strict=True)
    ]
    assert found["frame_auroc_macro_padded_per_clip_minmax"] == pytest.approx(np.mean(padded))
    # Nothing is left under the plain names, where it could be taken for what it is not.
    assert not {"frame_auroc_micro", "frame_auroc_macro", "frame_ap_micro"} & set(found)
    assert "frame_auroc_macro_padded" in evaluate_frames([clip_scores("a", [0.1, 0.9], [0, 1])], padded=True, n_boot=5)
    with pytest.raises(ValueError, match="scores in \\[0, 1\\]"):
        evaluate_frames(clips, padded=True)


def test_frames_without_a_score_are_left_out_and_counted() -> None:
    clips = made()
    holes = []
    for clip in clips:
        scores = clip.scores.copy()
        scores[:3] = np.nan
        holes.append(clip_scores(clip.id, scores, clip.truth, clip.times))
    cut = [clip_scores(clip.id, clip.scores[3:], clip.truth[3:], clip.times[3:]) for clip in clips]
    a, b = evaluate_frames(holes, n_boot=10), evaluate_frames(cut, n_boot=10)
    assert a["n_without_score"] == 18
    assert {**a, "n_without_score": 0} == b


def test_what_is_undefined_has_a_reason() -> None:
    found = evaluate_frames([clip_scores("a", [1, 2], [0, 0]), clip_scores("b", [1, 2], [0, 0])], n_boot=5)
    assert found["frame_auroc_micro"] is None
    assert found["reasons"]["frame_auroc_micro"] == "no anomalous frame"
    assert found["reasons"]["frame_auroc_macro"] == "no clip has frames of both classes"
    one = evaluate_frames([clip_scores("a", [1, 2, 3], [0, 1, 1])], n_boot=5)
    assert one["frame_auroc_macro"] == 1
    assert one["frame_auroc_macro_ci95"] is None
    assert "needs at least 2" in one["reasons"]["frame_auroc_macro_ci95"]
    with pytest.raises(DataError, match="at least one clip"):
        evaluate_frames([])


@pytest.mark.parametrize(
    ("scores", "times"), [([1.0], None), ([1.0, np.inf], None), ([1.0, 2.0], [0.0, 0.0]), ([[1.0], [2.0]], None)]
)
def test_scores_that_do_not_fit_their_clip_are_refused(scores: list, times: list | None) -> None:
    with pytest.raises(DataError, match="clip a"):
        clip_scores("a", scores, [0, 1], times)


def test_resamples_of_the_macro_mean_are_means_of_the_clips_drawn() -> None:
    clips = made()
    pool = MacroPool(clips)
    values = [pool.per_clip[group] for group in pool.groups]
    weights = np.array([[2, 0, 1, 1], [0, 0, 0, 4]])
    assert pool.resampled(("auroc",), weights)["auroc"] == pytest.approx(
        [(2 * values[0] + values[2] + values[3]) / 4, values[3]]
    )


def test_many_frames_are_binned_for_the_bootstrap_only() -> None:
    clips = made(n=200)
    exact, binned = frame_pool(clips), frame_pool(clips, exact_frames=10)
    assert type(exact) is not type(binned)
    weights = np.random.default_rng(0).multinomial(6, [1 / 6] * 6, size=50)
    for metric in ("auroc", "ap"):
        assert exact.value(metric) == binned.value(metric)
        a, b = (pool.resampled((metric,), weights)[metric] for pool in (exact, binned))
        assert b == pytest.approx(a, abs=2e-3, nan_ok=True)


def test_the_table_has_a_row_a_clip() -> None:
    rows = per_clip_table(made())
    assert [row["clip"] for row in rows] == [f"clip{k}" for k in range(6)]
    assert [row["reason"] for row in rows[:3]] == ["no anomalous frame", "no normal frame", None]
    assert rows[0]["auroc"] is None
    assert rows[2]["seconds"] == pytest.approx(4.2)


#            0  1  2  3  4  5  6  7  8  9 10 11
TRUTH = [0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
SCORE = [5, 0, 1, 7, 7, 0, 0, 6, 0, 3, 4, 0]


def by_hand(merge_s: float = 0.0) -> tuple[ClipScores, float]:
    """One clip, a frame a second: events in frames 2-3 (peak 7) and 9-10 (peak 4), alarms elsewhere."""
    return clip_scores("a", SCORE, TRUTH, fps=1), merge_s


def test_alarms_and_events_by_hand() -> None:
    clip, _ = by_hand()
    assert alarms_at(clip, 4, 0.0) == [slice(0, 1), slice(3, 5), slice(7, 8), slice(10, 11)]
    assert false_alarms(clip, 4, 0.0) == 2
    # Frames 0 and 3 are 3 s apart, 4 and 7 too, 7 and 10 as well: everything becomes one alarm, and a true one.
    assert alarms_at(clip, 4, 3.5) == [slice(0, 11)]
    assert false_alarms(clip, 4, 3.5) == 0
    assert false_alarms(clip, 5, 0.0) == 2
    found = events_at([clip], 4)
    assert [(event.start, event.end, event.peak, event.delay) for event in found] == [(2, 4, 7, 1), (9, 11, 4, 1)]
    assert [event.delay for event in events_at([clip], 5)] == [1, None]
    assert normal_hours(clip) == pytest.approx(8 / 3600)


def test_false_alarms_an_hour_at_a_recall_by_hand() -> None:
    clip, _ = by_hand()
    found = evaluate_alarms([clip], (0.5, 1.0), merge_s=0.0, n_boot=5)
    # Half of the events: threshold 7, no false alarm. All: threshold 4, those of frames 0 and 7.
    assert found["oracle_threshold_at_recall_0.5"] == 7
    assert found["false_alarms_per_hour_at_recall_0.5"] == 0
    assert found["oracle_threshold_at_recall_1"] == 4
    assert found["false_alarms_per_hour_at_recall_1"] == pytest.approx(2 / (8 / 3600))
    assert (found["n_events"], found["merge_s"]) == (2, 0.0)


def test_resampled_rates_are_those_of_clips_listed_as_often() -> None:
    rng = np.random.default_rng(1)
    clips = [clip_scores(f"c{k}", rng.normal(size=60), rng.random(60) < 0.1, fps=5) for k in range(4)]
    weights = np.array([[2, 0, 1, 1], [1, 1, 1, 1], [0, 4, 0, 0]])
    rates = AlarmPool(clips).resampled(("0.6",), weights)["0.6"]
    for drawn, rate in zip(weights, rates, strict=True):
        listed = [
            clip_scores(f"{clip.id}-{k}", clip.scores, clip.truth, clip.times)
            for clip, times in zip(clips, drawn, strict=True)
            for k in range(times)
        ]
        assert AlarmPool(listed).value("0.6") == pytest.approx(rate)


def test_reported_events_by_hand() -> None:
    truth = np.zeros(20, dtype=bool)
    truth[2:4] = truth[9:11] = truth[15:18] = True
    clip = clip_scores("a", np.zeros(20), truth, np.arange(20.0))
    quiet = clip_scores("b", np.zeros(10), np.zeros(10, dtype=bool), np.arange(10.0))
    # one before the first event, one that begins in its second frame, one over both others and one more in b
    found = evaluate_events([clip, quiet], {"a": [(0.0, 1.0), (3.0, 5.0), (10.0, 16.0)], "b": [(0.0, 9.0)]})
    assert (found["n_events"], found["n_events_found"], found["n_reported"], found["n_false_alarms"]) == (3, 3, 4, 2)
    assert found["event_recall"] == 1
    assert found["event_delay_s"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["normal_hours"] == pytest.approx((13 + 10) / 3600)
    assert found["event_false_alarms_per_hour"] == pytest.approx(2 / found["normal_hours"])
    low, high = (end * found["normal_hours"] for end in found["event_false_alarms_per_hour_ci95"])
    assert stats.poisson.sf(1, low) == pytest.approx(0.025)
    assert stats.poisson.cdf(2, high) == pytest.approx(0.025)
    unseen = clip_scores("b", [np.nan] * 4 + [0.0] * 6, np.zeros(10, dtype=bool), np.arange(10.0))
    assert evaluate_events([unseen], {})["normal_hours"] == pytest.approx(6 / 3600)
    missed = evaluate_events([clip], {})
    assert missed["event_recall"] == 0
    assert missed["event_delay_s"] is None
    assert missed["reasons"] == {"event_delay_s": "no event of the truth was found"}
    assert missed["event_false_alarms_per_hour_ci95"][0] == 0
    assert evaluate_events([quiet], {})["reasons"]["event_recall"] == "no event in the truth"


def test_alarms_without_events_or_with_unscored_ones_have_a_reason() -> None:
    quiet = clip_scores("a", [1, 2, 3], [0, 0, 0])
    assert evaluate_alarms([quiet], (0.5,), n_boot=5)["reasons"]["false_alarms_per_hour_at_recall_0.5"] == (
        "no event in the truth"
    )
    blind = clip_scores("b", [1, np.nan, 3], [0, 1, 0])
    found = evaluate_alarms([blind], (0.5,), n_boot=5)
    assert found["false_alarms_per_hour_at_recall_0.5"] is None
    assert found["oracle_threshold_at_recall_0.5"] is None
    with pytest.raises(ValueError, match="recalls"):
        evaluate_alarms([quiet], (0.0,))


@pytest.mark.data
def test_the_frame_number_alone_reaches_what_is_published_of_ped2(data_root: Path) -> None:
    """Frame number and constant scores: no pixel is read."""
    from anodiff.data.video.layouts import load_clips

    if not (data_root / "ucsd_ped2").is_dir():
        pytest.skip(f"real data absent: no folder {data_root / 'ucsd_ped2'}")
    rows = load_clips(data_root / "ucsd_ped2").split("test").rows
    truths = [row.truth for row in rows if row.truth is not None]
    number = [clip_scores(str(k), np.arange(len(truth)), truth) for k, truth in enumerate(truths)]
    plain = evaluate_frames(number, n_boot=2)
    assert (plain["frame_auroc_micro"], plain["frame_auroc_macro"]) == pytest.approx((0.741, 0.625), abs=1e-3)
    assert plain["n_clips_one_class"] == 4
    both = evaluate_frames(number, padded=True, per_clip_minmax=True, n_boot=2)
    assert both["frame_auroc_macro_padded_per_clip_minmax"] == pytest.approx(0.775, abs=1e-3)
    constant = [clip_scores(str(k), np.full(len(truth), 0.5), truth) for k, truth in enumerate(truths)]
    assert evaluate_frames(constant, padded=True, n_boot=2)["frame_auroc_macro_padded"] == pytest.approx(
        0.685, abs=1e-3
    )
