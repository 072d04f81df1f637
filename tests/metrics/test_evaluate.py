"""evaluate_maps: the contract's keys, against scikit-learn, with a reason for every null, and a sentence for bad
input."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from anodiff.errors import DataError
from anodiff.metrics import aupimo, aupro, curves_of, evaluate_maps, froc, lesion_sensitivity, pool_maps
from anodiff.metrics.evaluate import AUPIMO_PERCENTILES

VALUES = (
    *("image_auroc", "image_ap", "image_oracle_f1", "pixel_auroc", "pixel_ap", "oracle_max_dice", "oracle_f1"),
    *("aupro", "aupro_005", "dice_at_fpr5", "iou_at_fpr5", "lesion_sensitivity_at_fpr5"),
)


def _set(n: int = 20, side: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    maps: list[tuple[str, np.ndarray, np.ndarray | None]] = []
    labels, scores, groups = [], [], []
    for i in range(n):
        mask = np.zeros((side, side), bool)
        if i % 2:
            mask[4:9, 5:9] = True
        values = (rng.normal(size=(side, side)) + 1.5 * mask).astype(np.float32)
        maps.append((f"image {i}", values, mask if i % 2 else None))
        labels.append(i % 2)
        scores.append(float(values.max()))
        groups.append(f"patient {i // 4}")
    return {"maps": maps, "labels": labels, "scores": scores, "groups": groups}


def _flat(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    masks = [np.zeros(m.shape, bool) if t is None else t for _, m, t in case["maps"]]
    return np.ravel(masks), np.ravel([m for _, m, _ in case["maps"]])


def test_values_equal_scikit_learn_and_are_plain_json() -> None:
    case = _set()
    found = evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=200)
    mask, values = _flat(case)
    assert found["image_auroc"] == pytest.approx(sk.roc_auc_score(case["labels"], case["scores"]), abs=1e-12)
    assert found["image_ap"] == pytest.approx(sk.average_precision_score(case["labels"], case["scores"]), abs=1e-12)
    assert found["pixel_auroc"] == pytest.approx(sk.roc_auc_score(mask, values), abs=1e-12)
    assert found["pixel_ap"] == pytest.approx(sk.average_precision_score(mask, values), abs=1e-12)
    assert found["dice_at_fpr5"] == pytest.approx(sk.f1_score(mask, values > 1.6), abs=1e-12)
    assert found["oracle_max_dice"] >= found["dice_at_fpr5"]
    assert found["iou_at_fpr5"] == pytest.approx(sk.jaccard_score(mask, values > 1.6), abs=1e-12)
    maps, masks = [m for _, m, _ in case["maps"]], [t for _, _, t in case["maps"]]
    assert found["aupro"] == aupro(maps, masks)
    assert found["aupro_005"] == aupro(maps, masks, 0.05)
    assert found["lesion_sensitivity_at_fpr5"] == lesion_sensitivity(maps, masks, 1.6)
    best = max(sk.f1_score(case["labels"], case["scores"] >= np.float64(t)) for t in case["scores"])
    assert found["image_oracle_f1"] == pytest.approx(best, abs=1e-12)
    assert found["oracle_f1"] == found["oracle_max_dice"]
    for key in VALUES:
        low, high = found[f"{key}_ci95"]
        assert 0 <= low <= found[key] <= high <= 1
    assert (found["n_images"], found["n_anomalous"], found["n_groups"], found["n_pixel_images"]) == (20, 10, 5, 20)
    assert {key.removesuffix("_ci95") for key in found["reasons"]} <= {"aupimo", *AUPIMO_PERCENTILES}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_same_seed_same_numbers_another_seed_other_intervals() -> None:
    case = _set()
    first = evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=100, seed=1)
    assert first == evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=100, seed=1)
    other = evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=100, seed=2)
    assert other["pixel_ap"] == first["pixel_ap"]
    assert other["pixel_ap_ci95"] != first["pixel_ap_ci95"]


def test_everything_undefined_is_null_with_a_reason() -> None:
    cases: list[tuple[Any, Any, Any]] = [
        ([], [], []),
        ([("a", np.ones((4, 4)), None)], [0], [1.0]),
        ([("a", np.ones((4, 4)), None)], [None], [1.0]),
        ([("a", None, None)], [1], [None]),
    ]
    for maps, labels, scores in cases:
        found = evaluate_maps(maps, labels, scores, None, pixel_threshold_fpr5=None, n_boot=10)
        for key in (*VALUES, "aupimo"):
            assert found[key] is None
            assert found[f"{key}_ci95"] is None
            assert found["reasons"][key]
            assert found["reasons"][f"{key}_ci95"]


def test_all_anomalous_images_have_pixel_metrics_but_none_that_ranks_images() -> None:
    case = _set()
    keep = [i for i in range(20) if i % 2]
    part: dict[str, Any] = {key: [value[i] for i in keep] for key, value in case.items()}
    found = evaluate_maps(**part, pixel_threshold_fpr5=None, n_boot=50)
    for key in ("image_auroc", "image_ap", "image_oracle_f1"):
        assert found[key] is found[f"{key}_ci95"] is None
        assert found["reasons"][key] == found["reasons"][f"{key}_ci95"] == "no normal image"
    assert found["pixel_auroc"] is not None
    assert found["dice_at_fpr5"] is None
    assert "not calibrated" in found["reasons"]["dice_at_fpr5"]


def test_failed_unlabelled_and_maskless_images_are_left_out_and_counted() -> None:
    case = _set()
    plain = evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20)
    case["maps"] += [("failed", None, None), ("unknown", np.ones((16, 16)), None), ("no mask", np.ones((16, 16)), None)]
    case["labels"] += [1, pd.NA, 1]
    case["scores"] += [float("nan"), 0.3, 99.0]
    case["groups"] += ["x", None, float("nan")]
    found = evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20)
    for key in ("pixel_auroc", "pixel_ap", "aupro", "dice_at_fpr5", "oracle_max_dice", "n_pixel_images"):
        assert found[key] == plain[key]
    assert (found["n_images"], found["n_anomalous"]) == (21, 11)
    assert (found["n_unlabelled"], found["n_without_score"]) == (1, 1)


def test_a_missing_label_is_read_from_the_mask() -> None:
    case = _set()
    labelled = evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20)
    case["labels"] = [None if label else 0 for label in case["labels"]]
    assert evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20) == labelled


def test_unknown_groups_make_every_image_its_own() -> None:
    case = _set()
    case["groups"] = None
    assert evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20)["n_groups"] == 20
    case["groups"] = ["p", *[""] * 19]
    assert evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20)["n_groups"] == 20


def test_maps_are_read_once_and_one_at_a_time() -> None:
    case = _set()
    case["maps"] = iter(case["maps"])
    assert evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20)["n_images"] == 20


@pytest.mark.parametrize(
    ("maps", "labels", "scores", "sentence"),
    [
        ([("a", np.ones((4, 4)), np.ones((5, 4)))], [1], [1.0], r"mask of a .* \(4, 4\), found \(5, 4\)"),
        ([("a", np.full((4, 4), np.nan), None)], [0], [1.0], "map of a holds 16 NaN"),
        ([("a", np.ones((4, 4)), np.ones((4, 4)))], [0], [1.0], "a is labelled normal, but its mask marks 16"),
        ([("a", np.ones((4, 4)), None)], [3], [1.0], "label of a must be 0"),
        ([("a", np.ones((4, 4)), None)] * 2, [0, 0], [1.0, 1.0], "a is given twice"),
        ([("a", np.ones((4, 4)), None)], [0, 1], [1.0, 1.0], "as many maps as labels, 2, found 1"),
        ([("a", np.ones((4, 4)), None), ("b", None, None)], [0], [1.0], "b has no label"),
        ([("a", np.ones((4, 4)), None)], [0], [1.0, 2.0], "found 1 labels, 2 scores"),
    ],
)
def test_bad_input_gets_one_sentence(maps: list[Any], labels: list[Any], scores: list[Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        evaluate_maps(maps, labels, scores, None, pixel_threshold_fpr5=None)


def test_curves_are_there_where_both_classes_are() -> None:
    case = _set()
    assert set(curves_of(pool_maps(**case))) == {"image_roc", "image_pr", "pixel_roc", "pixel_pr"}
    case["labels"], case["maps"] = [0] * 20, [(name, values, None) for name, values, _ in case["maps"]]
    assert curves_of(pool_maps(**case)) == {}


def test_aupimo_and_its_spread_where_the_normals_are_many() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((80, 80), bool)
    mask[10:30, 10:30] = True
    maps = [(f"{i}", rng.normal(size=mask.shape) + 4.0 * mask * (i < 4), mask if i < 4 else None) for i in range(24)]
    found = evaluate_maps(maps, [int(i < 4) for i in range(24)], [0.0] * 24, pixel_threshold_fpr5=None, n_boot=100)
    expected = aupimo([m for _, m, _ in maps], [t for _, _, t in maps])
    assert found["aupimo"] == expected.mean
    assert found["aupimo_ci95"][0] <= found["aupimo"] <= found["aupimo_ci95"][1]
    assert found["aupimo_median"] == np.median(expected.per_image)
    assert found["aupimo_p25"] <= found["aupimo_median"] <= found["aupimo_p75"]
    assert not [key for key in found["reasons"] if key.startswith("aupimo")]


def test_an_anomalous_image_with_an_empty_mask_is_no_normal_image() -> None:
    case = _set()
    case["labels"][0] = 1
    case["maps"][0] = (*case["maps"][0][:2], np.zeros((16, 16), bool))
    pools = pool_maps(**case)
    assert not pools.regions.normal[0]
    assert pools.regions.normal.sum() == 9


def test_more_thresholds_froc_classes_and_lesion_sizes_if_asked_for() -> None:
    case = _set()
    plain = evaluate_maps(**case, pixel_threshold_fpr5=1.6, n_boot=20)
    assert not [key for key in plain if key.startswith(("per_", "froc", "dice_at_fpr1"))]
    found = evaluate_maps(
        **case,
        classes=[("good", "crack", "good", "hole")[i % 4] for i in range(20)],
        pixel_threshold_fpr5=1.6,
        pixel_thresholds={"fpr1": 2.4},
        candidate_threshold=2.4,
        lesion_size_edges=[10, 30],
        n_boot=20,
    )
    assert {key: found[key] for key in plain if key != "reasons"} == {k: v for k, v in plain.items() if k != "reasons"}
    mask, values = _flat(case)
    assert found["dice_at_fpr1"] == pytest.approx(sk.f1_score(mask, values > 2.4), abs=1e-12)
    maps, masks = [m for _, m, _ in case["maps"]], [t for _, _, t in case["maps"]]
    assert found["froc"] == froc(maps, masks, 2.4).score()
    assert set(found["per_class"]) == {"crack", "hole"}
    assert set(found["per_lesion_size"]) == {"<10", "10-30", ">=30"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_benchmark_sized_set_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((128, 128), bool)
    mask[50:70, 60:80] = True
    maps = ((f"{i}", rng.random((128, 128), dtype=np.float32), mask if i % 2 else None) for i in range(120))
    start = time.perf_counter()
    found = evaluate_maps(
        maps,
        [i % 2 for i in range(120)],
        list(range(120)),
        [f"{i // 8}" for i in range(120)],
        pixel_threshold_fpr5=0.95,
        n_boot=300,
    )
    assert found["n_pixel_images"] == 120
    assert time.perf_counter() - start < 20
