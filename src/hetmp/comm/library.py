"""The MPI library: started when first needed, named, and refused where it cannot work."""

import atexit
import os
import sys
from typing import Any

from hetmp.errors import HetmpError


def mpi() -> Any:
    """``mpi4py.MPI``, with MPI started."""
    started_by_user = "mpi4py.MPI" in sys.modules
    if not started_by_user:
        import mpi4py

        mpi4py.rc.initialize = False
        # Open MPI's UCX component cannot share memory on a host, and says so at every window.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    from mpi4py import MPI

    if not started_by_user:
        _refuse_misfit(MPI.Get_library_version())
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        atexit.register(_finalize)
    return MPI


def _finalize() -> None:
    from mpi4py import MPI

    if not MPI.Is_finalized():
        MPI.Finalize()


def _refuse_misfit(library: str) -> None:
    """Say what MPICH would abort on without a word of help: a launcher that speaks PMIx only."""
    pmix_only = "PMIX_RANK" in os.environ and "PMI_RANK" not in os.environ
    if library.startswith("MPICH") and pmix_only and "SLURM_PROCID" in os.environ:
        raise HetmpError(
            "srun --mpi=pmix does not fit this MPI library (MPICH): use srun --mpi=pmi2, or an "
            "Open MPI"
        )


def mpi_library() -> str:
    """The MPI library in use, for example ``MPICH 5.0.2``."""
    name, version = mpi().get_vendor()
    return f"{name} {'.'.join(str(part) for part in version)}"
