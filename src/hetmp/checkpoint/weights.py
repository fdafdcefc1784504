"""A trained network as one HDF5 file: whole tensors, readable by h5py, h5ls and HDFView."""

import os
from pathlib import Path

import h5py

from hetmp.slicing import SlicedModel, merged_tensors


def write_weights(path: Path, model: SlicedModel) -> None:
    """Write the unsliced network: ``/model/<parameter>`` and ``/buffers/<buffer>``.

    Collective. Rank 0 writes, and holds one whole tensor at a time. The file appears under
    its name when it is complete. Names, shapes and dtypes are the unsliced ``state_dict``'s.

    Raises:
        HetmpError: on every rank, if the file cannot be written.
    """
    group = model.hetmp.group
    file: h5py.File | None = None
    beside = path.with_name(path.name + ".part")
    with group.together():
        if group.is_root:
            file = h5py.File(beside, "w")
    try:
        for name, tensor in merged_tensors(model, root=0):
            with group.together():
                if file is not None and tensor is not None:
                    folder = "model" if model.hetmp.table[name].parameter else "buffers"
                    file.require_group(folder).create_dataset(name, data=tensor.numpy())
        with group.together():
            if file is not None:
                file.close()
                _flush_to_disk(beside)
                beside.replace(path)
                _flush_to_disk(path.parent)
    finally:
        if file is not None:
            file.close()
            beside.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
