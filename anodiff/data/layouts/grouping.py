"""What belongs together, where the user says so: the folder of an image, or a part of its path."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from anodiff.data.readers import file_of
from anodiff.data.table import SampleTable
from anodiff.errors import DataError

BY_PATH = "path"


def relative_paths(samples: SampleTable) -> list[str]:
    """The path of each image below the data's folder, with "/" between its parts, alike wherever the data lies."""
    root = samples.root.parent if samples.root.is_file() else samples.root
    # Not resolved: a link is named by the place it has in the data set, not by its target.
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in samples.table["path"]]


def regrouped(samples: SampleTable, group_by: str) -> SampleTable:
    """The table with other groups: ``path`` (the folder of each image) or a regular expression with one group.

    Raises DataError: neither of the two nor a column (manifests only), or an image in whose path it finds nothing.
    """
    paths = relative_paths(samples)
    if group_by == BY_PATH:
        return _with_groups(samples, [os.path.dirname(file_of(path)) or "." for path in paths])
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DataError(f"--group-by {group_by}: expected a regular expression, found {error}") from None
    if pattern.groups != 1:
        raise DataError(
            f"--group-by {group_by}: expected 'path', a column of the CSV manifest, or a regular expression with one "
            f"group in parentheses, found {pattern.groups} groups"
        )
    found = [match[1] if (match := pattern.search(path)) else None for path in paths]
    missing = [path for path, group in zip(paths, found, strict=True) if not group]
    if missing:
        raise DataError(
            f"--group-by {group_by}: expected a group in every path, found none in {len(missing)}, {missing[0]} first"
        )
    return _with_groups(samples, [str(group) for group in found])


def _with_groups(samples: SampleTable, groups: list[str]) -> SampleTable:
    return replace(samples, table=samples.table.assign(group=groups))
