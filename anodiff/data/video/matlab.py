"""MATLAB files, in which surveillance sets keep their truth: numbers and cells of numbers, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anodiff.errors import DataError


def read_mat(file: Path, key: str) -> NDArray[Any]:
    """The variable ``key`` of a MAT file up to version 7.

    Raises DataError: no such file, not a MAT file, version 7.3 (which is HDF5), no such variable in it.
    """
    from scipy.io import loadmat

    try:
        variables = loadmat(str(file), appendmat=False)
    except NotImplementedError:
        raise DataError(
            f"{file}: expected a MAT file up to version 7, found version 7.3 (HDF5); save it anew with -v7"
        ) from None
    except OSError as error:
        raise DataError(f"{file}: expected a MAT file, found {error.strerror or 'another kind of file'}") from None
    except Exception as error:
        # A damaged file can raise nearly anything inside the reader.
        detail = " ".join(str(error).split())[:200]
        raise DataError(f"{file}: expected a MAT file, found a damaged one or another kind ({detail})") from None
    names = [name for name in variables if not name.startswith("__")]
    if key not in names:
        raise DataError(f"{file}: expected a variable {key!r}, found {', '.join(names) or 'none'}")
    return np.asarray(variables[key])


def cells(values: NDArray[Any]) -> list[NDArray[Any]]:
    """What the cells of a cell array hold, in order; of a plain array, itself."""
    return [np.asarray(cell) for cell in values.ravel(order="F")] if values.dtype == object else [values]
