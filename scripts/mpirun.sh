#!/bin/sh
# Runs .venv's mpirun as hetmp's tests and examples need it: as any user, with more ranks than
# cores, one thread per rank. Whatever is already set in the environment wins.
#
# Usage: scripts/mpirun.sh -n RANKS PROGRAM [ARGUMENT...]
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
mpirun=$root/.venv/bin/mpirun
if [ ! -x "$mpirun" ]; then # conda, say: the one on PATH
    mpirun=$(command -v mpirun) || {
        echo "mpirun.sh: no .venv/bin/mpirun here and no mpirun on PATH: run 'make setup'" >&2
        exit 127
    }
fi

preset() { # preset NAME VALUE: export it unless the user has set it
    eval "export $1=\"\${$1-\$2}\""
}

preset OMP_NUM_THREADS 1

# Open MPI only; MPICH does not read these. First 5, then 4.
preset PRTE_MCA_rmaps_default_mapping_policy :oversubscribe
preset PRTE_MCA_hwloc_default_binding_policy none
preset OMPI_MCA_rmaps_base_oversubscribe 1
preset OMPI_MCA_hwloc_base_binding_policy none
preset OMPI_MCA_osc ^ucx
if [ "$(id -u)" = 0 ]; then # it refuses to start as root, as in a container, without both
    preset OMPI_ALLOW_RUN_AS_ROOT 1
    preset OMPI_ALLOW_RUN_AS_ROOT_CONFIRM 1
fi

exec "$mpirun" "$@"
