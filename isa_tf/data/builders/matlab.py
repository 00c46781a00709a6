"""Labels in MATLAB files."""

import io
from typing import Any

import numpy as np

from isa_tf.data.base import DataError
from isa_tf.data.builders.archives import Files, Member


def read_mat(files: Files, label: Member, *keys: str) -> np.ndarray:
    """An array in a MATLAB file.

    Args:
        files: `Files`.
        label: `Member`.
        *keys: str, the name of the array, or of a struct and its field.

    Raises:
        DataError: for a file that cannot be read or has no such array.

    Example:

    >>> import scipy.io
    >>> from isa_tf.data.builders.archives import Files, Member
    >>> scipy.io.savemat("label.mat", {"S": np.eye(3)})
    >>> read_mat(Files(".", "."), Member(None, "label.mat"), "S").shape
    (3, 3)
    """
    import scipy.io

    contents = files.read(label)
    try:
        found: Any = scipy.io.loadmat(io.BytesIO(contents), variable_names=keys[:1])
        for key in keys:
            found = found[key] if isinstance(found, dict) else found[key][0, 0]
        found = np.asarray(found)
        if found.ndim != 2 or found.dtype.kind not in "uif":
            raise ValueError(f"{found.dtype} of shape {found.shape}")
        return found
    except Exception as error:  # of a damaged file it may raise any
        raise DataError(
            label, f"no array {'.'.join(keys)} can be read of it ({error!r})"
        ) from error
