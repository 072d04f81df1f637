"""What pydicom warns of while it reads: gathered, to reach a reader as a remark that names the file, or not at all."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

#: which warnings are shown is one setting of the whole process, and volumes are read in several threads
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def gathered() -> Iterator[list[str]]:
    """Within it nothing is shown of warnings: after it, the list holds the text of each once, on one line.

    A text may quote what was read. It is only passed on where nothing of the patient is parsed.
    """
    said: list[str] = []
    with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
        said += dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
