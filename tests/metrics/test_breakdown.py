"""Breakdown by class and by lesion size, against scikit-learn on the selected pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skimage import measure
from sklearn import metrics as sk

from anodiff.metrics import Pools, pool_maps
from anodiff.metrics.breakdown import per_class, per_lesion_size

CLASSES = ("good", "crack", "hole", None)


def _case() -> dict[str, Any]:
    rng = np.random.default_rng(6)
    case: dict[str, Any] = {"maps": [], "labels": [], "scores": [], "classes": []}
    for i in range(24):
        mask = np.zeros((12, 12), bool)
        if i % 4:
            mask[1:3, 1:3] = mask[5 : 6 + i % 4, 4:9] = True
        values = rng.normal(size=mask.shape) + (i % 4) * mask
        case["maps"].append((f"{i}", values.astype(np.float32), mask))
        case["labels"].append(int(mask.any()))
        case["scores"].append(float(values.mean()))
        case["classes"].append(CLASSES[i % 4])
    return case


def _pools(case: dict[str, Any]) -> Pools:
    pools = pool_maps(**case)
    assert pools.classes is not None
    return pools


def _by_class(pools: Pools) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    assert pools.classes is not None
    return per_class(pools, pools.classes)


def test_a_class_is_its_images_against_all_normal_ones() -> None:
    case = _case()
    found, reasons = _by_class(_pools(case))
    assert set(found) == {"crack", "hole"}
    assert reasons == {}
    for name, row in found.items():
        chosen = [i for i in range(24) if case["classes"][i] in (name, "good")]
        labels, scores = [case["labels"][i] for i in chosen], [case["scores"][i] for i in chosen]
        values, mask = (np.ravel([case["maps"][i][part] for i in chosen]) for part in (1, 2))
        assert row["image_auroc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
        assert row["image_ap"] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
        assert row["pixel_auroc"] == pytest.approx(sk.roc_auc_score(mask, values), abs=1e-12)
        assert row["pixel_ap"] == pytest.approx(sk.average_precision_score(mask, values), abs=1e-12)
        assert row["n"] == 6


def test_what_a_class_lacks_is_none_with_a_reason() -> None:
    case = _case()
    case["maps"] = [
        (name, None if case["classes"][i] == "hole" else v, m) for i, (name, v, m) in enumerate(case["maps"])
    ]
    case["scores"] = [None if name == "crack" else s for s, name in zip(case["scores"], case["classes"], strict=True)]
    found, reasons = _by_class(_pools(case))
    assert found["hole"]["pixel_auroc"] is None
    assert reasons["per_class.hole.pixel_auroc"] == "no anomalous pixel"
    assert found["crack"]["image_ap"] is None
    assert reasons["per_class.crack.image_ap"] == "no anomalous image"
    assert found["hole"]["n"] == found["crack"]["n"] == 6


@pytest.mark.parametrize("threshold", [1.0, None])
def test_a_size_is_its_lesions_against_all_normal_pixels(threshold: float | None) -> None:
    case = _case()
    found, reasons = per_lesion_size(_pools(case), [5, 12, 500], threshold)
    assert list(found) == ["<5", "5-12", "12-500", ">=500"]
    normal = np.concatenate([values[~mask] for _, values, mask in case["maps"]])
    for (low, high), row in zip(((0, 5), (5, 12), (12, 500)), list(found.values())[:3], strict=True):
        lesions = []
        for _, values, mask in case["maps"]:
            labels = measure.label(mask, connectivity=2)
            lesions += [values[labels == k] for k in range(1, labels.max() + 1) if low <= (labels == k).sum() < high]
        scores, truth = np.concatenate([*lesions, normal]), np.arange(sum(map(len, lesions)) + len(normal))
        truth = truth < sum(map(len, lesions))
        assert row["n"] == len(lesions) > 0
        assert row["pixel_auroc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-12)
        assert row["pixel_ap"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-12)
        expected = None if threshold is None else pytest.approx(np.mean([(each > threshold).any() for each in lesions]))
        assert row["sensitivity"] == expected
    assert found[">=500"] == {"pixel_auroc": None, "pixel_ap": None, "sensitivity": None, "n": 0}
    assert reasons["per_lesion_size.>=500.pixel_ap"] == "no anomalous pixel"
    assert ("per_lesion_size.<5.sensitivity" in reasons) == (threshold is None)


def test_without_any_lesion_every_size_is_empty() -> None:
    case = _case()
    case["maps"] = [(name, values, np.zeros_like(mask)) for name, values, mask in case["maps"]]
    found, _ = per_lesion_size(_pools(case), [5], 1.0)
    assert [row["n"] for row in found.values()] == [0, 0]
