#!/bin/sh
# Builds h5py against the site's parallel HDF5 (Debian: mpich and libhdf5-mpich-dev) into
# .parallel-hdf5, beside .venv and without changing it. Does nothing when it is there.
#
# Usage: scripts/parallel-hdf5.sh [build]         build it
#        scripts/parallel-hdf5.sh run -n RANKS PROGRAM [ARGUMENT...]
#                                                 run a program with it, under that MPI
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
target=$root/.parallel-hdf5
version=3.16.0
cd -- "$root"

fail() {
    printf 'parallel-hdf5: %s\n' "$*" >&2
    exit 1
}

mpicc=$(command -v mpicc.mpich || :)
mpirun=$(command -v mpirun.mpich || :)
if [ -z "$mpicc" ] || [ -z "$mpirun" ]; then
    fail "found no mpicc.mpich and mpirun.mpich: install Debian's mpich and libhdf5-mpich-dev"
fi
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -print-multiarch)
include=/usr/include/hdf5/mpich
library=/usr/lib/$multiarch/hdf5/mpich
libmpi=/usr/lib/$multiarch/libmpich.so.12
[ -d "$include" ] && [ -d "$library" ] || fail "found no $include: install libhdf5-mpich-dev"

build() {
    if [ -e "$target/done-$version" ]; then return; fi
    scripts/setup.sh
    rm -rf "$target"
    mkdir -p "$target/mpi"
    # The mpi4py wheel asks for this name; Debian's MPICH has the same interface by another.
    ln -s "$libmpi" "$target/mpi/libmpi.so.12"
    echo "parallel-hdf5: building h5py $version with MPI (minutes)"
    "$root/.venv/bin/python" -m venv --clear "$target/tools"
    "$target/tools/bin/pip" install --quiet --disable-pip-version-check \
        'setuptools==78.1.1' 'cython>=3' pkgconfig wheel 'numpy>=2' 'mpi4py>=4' \
        "numpy==$("$root/.venv/bin/python" -c 'import numpy; print(numpy.__version__)')"
    HDF5_MPI=ON CC=$mpicc HDF5_INCLUDEDIR=$include HDF5_LIBDIR=$library H5PY_SETUP_REQUIRES=0 \
        "$target/tools/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        --no-build-isolation --no-binary=h5py --target "$target/python" "h5py==$version"
    rm -rf "$target/tools"
    touch "$target/done-$version"
}

case ${1:-build} in
    build) build ;;
    run)
        shift
        build
        export MPI4PY_MPIABI=mpich
        export LD_LIBRARY_PATH="$target/mpi${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        export PYTHONPATH="$target/python${PYTHONPATH:+:$PYTHONPATH}"
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
        exec "$mpirun" "$@"
        ;;
    *) fail "usage: parallel-hdf5.sh [build | run -n RANKS PROGRAM ...]" ;;
esac
