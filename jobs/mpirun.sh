#!/usr/bin/env bash
# Starts hetmp where there is no Slurm: on one machine, on a list of hosts, or in a job of another
# batch system (PBS, LSF, Grid Engine).
#
#     jobs/mpirun.sh -n 3 train --model digits --data digits --out runs/a --resume auto
#     jobs/mpirun.sh -n 3 --hostfile hosts.txt train --model digits --data digits --weights 3,2,1
#     jobs/mpirun.sh -n 3 profile digits
#     jobs/mpirun.sh -n 2 evaluate runs/a
#
# What stands before hetmp's command goes to mpirun; PBS's list of hosts does so by itself. SIGUSR2
# and SIGTERM to this script are passed on: a run with --out then saves a checkpoint and ends with
# 75, and the same command goes on from there.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# shellcheck source=jobs/env.sh
source jobs/env.sh

options=()
while [ $# -gt 0 ] && ! [[ $1 =~ ^(train|profile|evaluate|bench|doctor)$ ]]; do
    options+=("$1")
    shift
done
if [ $# -eq 0 ]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
if [ -n "${PBS_NODEFILE:-}" ]; then
    options=(--hostfile "$PBS_NODEFILE" "${options[@]}")
fi

scripts/mpirun.sh "${options[@]}" hetmp "$@" &
mpirun=$!
# shellcheck disable=SC2329 # called by the traps
ranks_below() { # PROCESS: the ranks that it started on this machine
    local child children
    children=$(pgrep -P "$1") || { echo "$1" && return; }
    for child in $children; do ranks_below "$child"; done
}
# shellcheck disable=SC2329
pass_on() { # SIGNAL: not every mpirun does so; the ranks agree, so some of them are enough
    local rank
    for rank in $(ranks_below "$mpirun"); do kill -s "$1" "$rank" || true; done
}
trap 'pass_on USR2' USR2
trap 'pass_on TERM' TERM
code=0
wait "$mpirun" || code=$?
while kill -0 "$mpirun" 2>/dev/null; do # a signal ends `wait`, not mpirun
    code=0
    wait "$mpirun" || code=$?
done
exit "$code"
