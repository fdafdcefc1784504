"""The MPI library: started when first needed, named, and refused where it cannot work."""

import atexit
import os
import sys
import time
from typing import Any

from hetmp.core.errors import HetmpError, grace_seconds


def mpi() -> Any:
    """Return ``mpi4py.MPI``, with MPI started."""
    library = _loaded()
    if not library.Is_initialized():
        _refuse_misfit(library.Get_library_version())
        library.Init_thread(library.THREAD_MULTIPLE)
        atexit.register(_finalize)
    return library


def mpi_started() -> bool:
    """Return whether MPI has been started in this process."""
    return "mpi4py.MPI" in sys.modules and bool(_loaded().Is_initialized())


def _loaded() -> Any:
    """Return ``mpi4py.MPI``; started only if the user's own program imported it before."""
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.initialize = False
        # Open MPI's UCX component cannot share memory on a host, and says so at every window.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    from mpi4py import MPI

    return MPI


def _finalize() -> None:
    from mpi4py import MPI

    if MPI.Is_finalized():
        return
    # An error that nobody caught. mpi4py would abort, but not before this.
    failed = hasattr(sys, "last_value") and not hasattr(sys, "ps1")
    if failed and not completed(MPI.COMM_WORLD.Ibarrier(), grace_seconds()):
        MPI.COMM_WORLD.Abort(1)
    MPI.Finalize()


def completed(request: Any, seconds: float) -> bool:
    """Return whether *request* completes within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (done := request.Test()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(done)


def _refuse_misfit(library: str) -> None:
    """Refuse a launcher that speaks PMIx only: MPICH would abort without a helpful word."""
    pmix_only = "PMIX_RANK" in os.environ and "PMI_RANK" not in os.environ
    if library.startswith("MPICH") and pmix_only and "SLURM_PROCID" in os.environ:
        raise HetmpError(
            "srun --mpi=pmix does not fit this MPI library (MPICH): use srun --mpi=pmi2, or an "
            "Open MPI"
        )


def mpi_vendor() -> str:
    """Return the MPI library's vendor, such as ``MPICH`` or ``Open MPI``. Does not start it.

    Raises:
        HetmpError: no MPI library can be loaded.
    """
    try:
        return str(_loaded().get_vendor()[0])
    except (ImportError, RuntimeError) as error:
        raise HetmpError(
            f"no MPI library can be loaded ({error}): make setup installs one"
        ) from error


def mpi_library() -> str:
    """Return the MPI library and its version, such as ``MPICH 5.0.2``. Does not start it."""
    name, version = _loaded().get_vendor()
    return f"{name} {'.'.join(str(part) for part in version)}"


def thread_level() -> str:
    """Return MPI's thread level: single, funneled, serialized or multiple."""
    library = mpi()
    names = ("single", "funneled", "serialized", "multiple")
    levels = [getattr(library, f"THREAD_{name.upper()}") for name in names]
    return names[levels.index(library.Query_thread())]
