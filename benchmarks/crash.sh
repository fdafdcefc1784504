#!/bin/sh
# Is a sound checkpoint always there? Kills a run at random moments, again and again, and looks.
#
# A run on RANKS ranks that saves after every step is started, and killed with SIGKILL after a
# random time: one rank, or all. Each time the newest checkpoint must have its digests, latest.h5
# must lead to it, and the next start must go on from it. TRIES times; a try takes some seconds.
#
# Usage: benchmarks/crash.sh [TRIES [RANKS]]
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tries=${1:-200}
ranks=${2:-2}
hetmp=$root/.venv/bin/hetmp
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

count=0
while [ "$count" -lt "$tries" ]; do
    out=$folder/run
    setsid "$root/scripts/mpirun.sh" -n "$ranks" "$hetmp" train --model digits --data digits \
        --epochs 1000 --batch-size 200 --checkpoint-every 1 --out "$out" --resume auto \
        >"$folder/said" 2>&1 &
    job=$!
    before=$(readlink "$out/checkpoints/latest.h5" || echo none)
    waited=0
    while [ "$(readlink "$out/checkpoints/latest.h5" || echo none)" = "$before" ]; do
        sleep 0.05
        waited=$((waited + 1))
        if [ "$waited" -gt 1200 ]; then
            cat "$folder/said"
            echo "crash: no checkpoint within a minute" >&2
            exit 1
        fi
    done
    chance=$(od -An -N2 -tu2 /dev/urandom)
    sleep "0.$(printf '%03d' $((chance % 300)))"
    if [ $((chance % 2)) -eq 0 ]; then # one rank
        pkill -KILL -n -f "$out" || :
    fi
    pkill -KILL -f "$out" || :
    wait "$job" 2>/dev/null || :
    "$hetmp" inspect --verify "$out/checkpoints/latest.h5" >"$folder/verified" 2>&1 || {
        cat "$folder/verified"
        echo "crash: latest.h5 is not sound after try $count" >&2
        exit 1
    }
    count=$((count + 1))
    if [ $((count % 20)) -eq 0 ]; then
        echo "$count of $tries: $(readlink "$out/checkpoints/latest.h5") is sound"
    fi
done
echo "crash: $tries times killed, $tries times a sound checkpoint"
