"""Reads MATLAB files."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from fedpgp.core.errors import DataError
from fedpgp.data.sources.listing import check_name

Array = np.ndarray[Any, Any]


def read(path: Path, variable: str, source: str) -> Array:
    """Return a variable of a MATLAB file, flattened; raise `DataError` if the file or the variable is missing.

    Args:
        path: the file.
        variable: its name in the file.
        source: the data set that needs it, for messages.
    """
    from scipy.io import loadmat

    check_name(path)
    try:
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        what = f"{path}: cannot be read ({error.strerror})"
        raise DataError(f"{what}; see `fedpgp data prepare {source}`") from error
    try:
        return np.asarray(loadmat(content, variable_names=[variable])[variable]).ravel()
    except Exception as error:  # scipy's reader raises anything
        raise DataError(f"{path}: not a MATLAB file with `{variable}` ({error}); fetch it again") from error
