"""Arrays in files of MATLAB, of either kind: its own format up to version 7.2, and HDF5 (7.3)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hetmp.core.errors import HetmpError
from hetmp.core.suggestions import near_path

_NUMBERS = {"double", "single", "logical"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Variable:
    """An array of numbers in a file, not read yet."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.shape} in {self.path}"


def variables(path: Path) -> list[Variable]:
    """List the arrays of numbers in a .mat file; cells, texts and structures are left out.

    Raises:
        HetmpError: no such file, not of MATLAB, damaged.
    """
    if not path.is_file():
        what = "is not a file" if path.exists() else f"does not exist{near_path(path)}"
        raise HetmpError(f"{path} {what}: give a MATLAB file (.mat)")
    # What damage makes these readers raise depends on where it is: whatever it is, it is said.
    try:
        import h5py

        if h5py.is_hdf5(path):
            with h5py.File(path, "r", locking=False) as file:
                return [
                    # MATLAB stores the axes from the last to the first there.
                    Variable(path, name, tuple(reversed(item.shape)))
                    for name, item in file.items()
                    if isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind in "biuf"
                ]
        from scipy.io import whosmat

        listed = whosmat(path, appendmat=False)
    except Exception as error:
        raise _damaged(path, error) from error
    return [
        Variable(path, name, tuple(int(side) for side in shape))
        for name, shape, kind in listed
        if kind in _NUMBERS
    ]


def read(variable: Variable) -> npt.NDArray[np.generic]:
    """Read the array, with its axes in MATLAB's order.

    Raises:
        HetmpError: the file is damaged; the numbers are complex.
    """
    path, name = variable.path, variable.name
    try:
        import h5py

        if h5py.is_hdf5(path):
            with h5py.File(path, "r", locking=False) as file:
                array = np.asarray(file[name][()]).T
        else:
            from scipy.io import loadmat

            array = np.asarray(loadmat(path, appendmat=False, variable_names=[name])[name])
    except Exception as error:
        raise _damaged(path, error) from error
    if array.shape != variable.shape or array.dtype.kind not in "biuf":
        raise HetmpError(f"{variable}: not an array of real numbers")
    return array


def _damaged(path: Path, error: Exception) -> HetmpError:
    return HetmpError(
        f"{path} cannot be read as a MATLAB file: {error or type(error).__name__}; is it another "
        "kind of file, or was it not copied to its end?"
    )
