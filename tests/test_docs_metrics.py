"""docs/metrics.md: its worked examples are run, so that the page cannot go stale."""

from __future__ import annotations

import doctest
from pathlib import Path

from anodiff.metrics import evaluate_maps

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def test_every_worked_example_gives_the_number_on_the_page() -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    page = PAGE.read_text(encoding="utf-8").replace("```", "")
    result = runner.run(parser.get_doctest(page, {}, "metrics.md", str(PAGE), 0))
    assert result.failed == 0
    assert result.attempted > 30


def test_every_metric_of_the_table_has_a_section_and_is_in_metrics_json() -> None:
    import numpy as np

    page = PAGE.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    keys = [key.strip(" `") for row in rows for key in row.split("|")[1].split(",")]
    mask = np.eye(4, dtype=bool)
    maps = [("a", mask * 1.0, mask), ("b", mask * 0.1, None)]
    found = evaluate_maps(maps, [1, 0], [1, 0], pixel_threshold_fpr5=0.5, candidate_threshold=0.5, n_boot=10)
    assert len(keys) > 12
    assert not set(keys) - set(found)
