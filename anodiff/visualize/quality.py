"""One picture of how near generated images are to real ones, and of how near both lie to the training images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

#: what each statistic of `anodiff.metrics.generation` is called on the page
NAMES = {
    "patches": "patches\n(sliced Wasserstein)",
    "spectrum_db": "spectrum\n(decibels)",
    "intensities": "intensities\n(Wasserstein)",
    "features_kid": "own features\n(kernel distance)",
}
UNITS = {"pixels": "root mean square difference in [-1, 1]", "features": "distance of own features"}
BINS = 20
MADE, REAL = "tab:orange", "tab:blue"


def quality_figure(
    statistics: Mapping[str, Mapping[str, Mapping[str, Any]]], nearest: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> bytes:
    """PNG: each statistic with its interval, of generated and of real images; histograms of nearest distances.

    statistics: name -> ``generated`` and ``real``, each with ``value`` and ``ci95``. nearest: by pixels or features,
    the distances of generated (n,) and of held-out images (m,) from their nearest training image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = 2 if nearest else 1
    page = Figure(figsize=(9, 2.6 * rows), layout="constrained", dpi=100)
    parts = np.atleast_1d(np.asarray(page.subfigures(rows, 1), dtype=object))
    for place, (name, found) in zip(_places(parts[0], len(statistics)), statistics.items(), strict=True):
        for at, (kind, colour) in enumerate((("generated", MADE), ("real", REAL))):
            value, (low, high) = found[kind]["value"], found[kind]["ci95"]
            place.plot([at, at], [low, high], color=colour, linewidth=2)
            place.plot([at], [value], "o", color=colour)
        place.set_xticks([0, 1], ["generated", "real"], fontsize=8)
        place.set_xlim(-0.5, 1.5)
        place.set_ylim(bottom=min(0.0, place.get_ylim()[0]))
        place.tick_params(axis="y", labelsize=7)
        place.set_title(NAMES.get(name, name), fontsize=8)
    for place, (name, (made, held)) in zip(_places(parts[-1], len(nearest)), nearest.items(), strict=True):
        edges = np.histogram_bin_edges(np.concatenate([np.ravel(made), np.ravel(held)]), BINS)
        for values, label, colour in ((made, "generated", MADE), (held, "real, held out", REAL)):
            shares = np.full(np.size(values), 1 / np.size(values))
            place.hist(np.ravel(values), edges, weights=shares, alpha=0.6, label=label, color=colour)
        place.set_xlabel(f"to the nearest training image: {UNITS[name]}", fontsize=8)
        place.set_ylabel("share of images", fontsize=8)
        place.tick_params(labelsize=7)
        place.legend(fontsize=7)
    buffer = io.BytesIO()
    FigureCanvasAgg(page).print_png(buffer)
    return buffer.getvalue()


def _places(part: Any, count: int) -> Sequence[Any]:
    return list(np.ravel(part.subplots(1, count, squeeze=False))) if count else []
