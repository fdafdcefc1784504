#!/usr/bin/env bash
# Runs an MPI program on "nodes" with a rank or a few on each, all on this one machine.
#
# Problem: ranks on one machine exchange through shared memory; a cluster's go through a network.
# What that costs, and whether a change makes it cheaper, does not show on one machine. Here each
# node is a set of Linux namespaces: host name, network, processes, IPC and /dev/shm. A bridge
# joins them by veth pairs, so MPI takes them for separate hosts and talks TCP.
#
# Cost: root, and a second to start; the bytes are copied by this machine's cores, on which all
# ranks compute as well. The link is faster than most and its latency lower: --rate and --delay
# change that. No interface or address appears on the machine itself, and no node sees its
# network: fetch data beforehand. Files are shared, and belong to who called sudo.
#
# Usage: sudo benchmarks/between_nodes.sh [-n NODES] [--per-node RANKS] [--rate RATE] [--delay DELAY]
#            [--] COMMAND...
#
#     -n NODES         2 to 4 nodes (2)
#     --per-node RANKS how many ranks are on each (1)
#     --rate RATE      how fast each node's link is in each direction, as tc spells it: 10gbit
#     --delay DELAY    how long a packet takes from node to node: 50us
#
#     sudo benchmarks/between_nodes.sh -n 2 -- .venv/bin/hetmp bench paper-cifar --batch-size 100
#     sudo benchmarks/between_nodes.sh --rate 1gbit -- .venv/bin/python benchmarks/collectives.py
#
# What the kernel cannot shape stays unshaped, and the first line says so. The last line tells how
# many bytes crossed the bridge (some kB are between mpirun and the nodes). Both go to stderr.
# The exit status is mpirun's, or 2 where nothing could be started.
set -euo pipefail

script=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/$(basename -- "${BASH_SOURCE[0]}")
root=$(dirname -- "$(dirname -- "$script")")
subnet=10.0.0 # inside the namespaces only

say() { printf 'between_nodes: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 2
}

# --- as mpirun's ssh: [OPTION...] HOST COMMAND... --------------------------------------------

if [ -n "${BETWEEN_NODES-}" ]; then # "node1=PID node2=PID ..."
    while [[ ${1-} == -* ]]; do shift; done
    host=${1:?no host}
    shift
    for node in $BETWEEN_NODES; do
        [ "${node%%=*}" = "$host" ] || continue
        pid=${node#*=}
        caller=()
        if [ -n "${SUDO_UID-}" ] && [ -n "${SUDO_GID-}" ]; then
            caller=(setpriv --reuid "$SUDO_UID" --regid "$SUDO_GID" --clear-groups --)
        fi
        exec nsenter --target "$pid" --net --uts --ipc --mount \
            --pid="/proc/$pid/ns/pid_for_children" -- \
            "${caller[@]}" /bin/sh -c "$*" # a shell reads it, as ssh's does
    done
    fail "no node is called '$host'"
fi

# --- what is wanted, and whether it can be had -----------------------------------------------

usage() { # the header, from "Usage" on
    sed -n '/^# Usage:/,/^[^#]/{/^#/!q;s/^# \{0,1\}//p}' "$script"
}

nodes=2
per_node=1
rate=
delay=
while [[ ${1-} == -* ]]; do
    case $1 in
        -h | --help)
            usage
            exit
            ;;
        --)
            shift
            break
            ;;
        -n | --per-node | --rate | --delay)
            [ $# -ge 2 ] || fail "$1 needs a value (--help says more)"
            case $1 in
                -n) nodes=$2 ;;
                --per-node) per_node=$2 ;;
                --rate) rate=$2 ;;
                --delay) delay=$2 ;;
            esac
            shift 2
            ;;
        *) fail "unknown option $1 (--help lists all)" ;;
    esac
done
[[ $nodes == [234] ]] || fail "-n takes 2, 3 or 4, got '$nodes'"
[[ $per_node =~ ^[1-9][0-9]?$ ]] || fail "--per-node takes 1 to 99 ranks, got '$per_node'"
[[ -z $rate || $rate =~ ^[0-9]+(\.[0-9]+)?([kmgt]i?)?(bit|bps)$ ]] ||
    fail "--rate takes for example 10gbit or 200mbit, got '$rate'"
[[ -z $delay || $delay =~ ^[0-9]+(\.[0-9]+)?(us|ms|s)$ ]] ||
    fail "--delay takes for example 50us or 2ms, got '$delay'"
[ $# -gt 0 ] || fail "no command given (--help shows how)"

[ "$(uname -s)" = Linux ] || fail "namespaces are Linux's: this does not run on $(uname -s)"
[ "$(id -u)" = 0 ] || fail "making network namespaces needs root: sudo $0 ..."
for need in ip:iproute2 unshare:util-linux nsenter:util-linux setpriv:util-linux; do
    command -v "${need%%:*}" >/dev/null ||
        fail "needs the program '${need%%:*}' (package ${need#*:} on Debian and Ubuntu)"
done

# --- nodes -----------------------------------------------------------------------------------

# Nothing here has a name outside a namespace, and a namespace goes with its last process. Each
# node has a first process, whose death ends all others in it; that one dies with this script,
# however this script ends, and so does mpirun. So nothing can be left over.
declare -A first=() # node -> process

die_with_us=(setpriv --pdeathsig KILL --)

hosts="127.0.0.1 localhost"$'\n'"$subnet.100 head"
for ((i = 1; i <= nodes; i++)); do hosts+=$'\n'"$subnet.$i node$i"; done

# shellcheck disable=SC2016 # for the shell inside
inside='set -e
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=1777 shm /dev/shm
umount -l /sys 2>/dev/null || :
mount -t sysfs -o ro sysfs /sys # MPI reads there how fast its network is
echo "$2" >/dev/shm/hosts
mount --bind /dev/shm/hosts /etc/hosts
rm /dev/shm/hosts
ip link set lo up
echo ready
exec sleep infinity >/dev/null'

add_node() { # add_node NAME: new namespaces and their first process
    local answer ready apart=(--pid --fork --kill-child --mount-proc)
    if [ "$1" = head ]; then apart=(); fi # mpirun must see the nodes' processes to enter them
    exec {ready}< <(
        exec "${die_with_us[@]}" unshare --net --uts --ipc --mount --propagation private \
            "${apart[@]}" -- sh -c "$inside" sh "$1" "$hosts"
    )
    first[$1]=$!
    read -r -u "$ready" answer || answer=
    exec {ready}<&-
    [ "$answer" = ready ] || fail "this machine does not let root make namespaces (above: why);" \
        "in a container it takes the capability SYS_ADMIN"
}

enter() { nsenter --target "${first[$1]}" --net --uts --ipc --mount -- "${@:2}"; }

mpirun=
# shellcheck disable=SC2329 # the trap calls it
end() { # mpirun may tell its ranks; then nothing survives
    trap '' INT TERM HUP
    if [ -n "$mpirun" ] && kill -TERM "$mpirun" 2>/dev/null; then
        for _ in {1..20}; do
            kill -0 "$mpirun" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$mpirun" 2>/dev/null || :
    fi
    if [ ${#first[@]} -gt 0 ]; then kill -KILL "${first[@]}" 2>/dev/null || :; fi
    wait 2>/dev/null || :
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

wire() { # wire NODE ARGUMENT...: ip in that node
    enter "$1" ip "${@:2}" || fail "could not join the nodes (above: why): the kernel needs" \
        "'bridge' and 'veth', and root the capability NET_ADMIN"
}

add_node head # where mpirun is, and the bridge
wire head link add bridge0 type bridge
wire head address add "$subnet.100/24" dev bridge0
wire head link set bridge0 up

names=()
for ((i = 1; i <= nodes; i++)); do
    node=node$i
    names+=("$node")
    add_node "$node"
    wire head link add "$node" type veth peer name eth0 netns "${first[$node]}"
    wire head link set "$node" master bridge0 up
    wire "$node" address add "$subnet.$i/24" dev eth0
    wire "$node" link set eth0 up
done

# --- links -----------------------------------------------------------------------------------

shape() { # shape KIND ARGUMENT...: both ends of every link, so both directions are limited
    local node
    for node in "${names[@]}"; do
        enter head tc qdisc replace dev "$node" root "$@" || return
        enter "$node" tc qdisc replace dev eth0 root "$@" || return
    done
}

delay_links() { # on the sender's end only: once from node to node
    local node
    for node in "${names[@]}"; do
        enter "$node" tc qdisc replace dev eth0 root "${netem[@]}" delay "$delay" || return
    done
}

unshape() {
    local node
    for node in "${names[@]}"; do
        enter head tc qdisc delete dev "$node" root || :
        enter "$node" tc qdisc delete dev eth0 root || :
    done 2>/dev/null
}

link=unshaped
if [ -n "$rate$delay" ]; then
    netem=(netem limit 100000 ${rate:+rate "$rate"})
    # Most kernels have tbf. It knows no delay, and a link that was idle sends 68 kB at once: the
    # largest packet of a veth; with less, packets are cut up and the rate is not reached.
    tbf=(tbf rate "$rate" burst 68kb latency 20ms)
    if why=$(shape "${netem[@]}" 2>&1 && { [ -z "$delay" ] || delay_links 2>&1; }); then
        link="${rate:-as fast as they go}${delay:+, $delay later}"
    else
        unshape
        if [ -n "$rate" ] && shape "${tbf[@]}" 2>/dev/null; then
            link="$rate${delay:+, but WITHOUT the delay (${why//$'\n'/ })}"
        else
            unshape
            link="UNSHAPED, as this machine cannot do it (${why//$'\n'/ })"
        fi
    fi
fi
say "$nodes nodes, links $link"

# --- run -------------------------------------------------------------------------------------

sent() { # sent NODE: bytes that came from it to the bridge
    enter head cat "/sys/class/net/$1/statistics/rx_bytes"
}

declare -A before=()
map=
for node in "${names[@]}"; do
    map+="$node=${first[$node]} "
    before[$node]=$(sent "$node")
done

list=$(IFS=, && echo "${names[*]}")
version=$("$root/scripts/mpirun.sh" --version 2>&1 || :)
case $version in
    *HYDRA*) how=(-launcher ssh -launcher-exec "$script" -hosts "$list" -ppn "$per_node") ;;
    *'Open MPI'* | *OpenRTE* | *PRRTE*)
        export OMPI_MCA_plm_rsh_agent=$script PRTE_MCA_plm_ssh_agent=$script
        how=(--host "${list//,/:$per_node,}:$per_node" --map-by slot)
        ;;
    *) fail "neither MPICH's mpirun nor Open MPI's: ${version%%$'\n'*}" ;;
esac

if [ -n "${SUDO_UID-}" ]; then # as whom the ranks run
    HOME=$(getent passwd "$SUDO_UID" | cut -d: -f6)
    export HOME
fi

# In the background, or a signal would wait for its end. Entering a mount namespace loses the folder.
# shellcheck disable=SC2016 # for the shell inside
BETWEEN_NODES=$map "${die_with_us[@]}" \
    nsenter --target "${first[head]}" --net --uts --ipc --mount -- \
    sh -c 'cd -- "$1" && shift && exec "$@"' sh "$PWD" \
    "$root/scripts/mpirun.sh" "${how[@]}" -n "$((nodes * per_node))" env -u BETWEEN_NODES "$@" <&0 &
mpirun=$!
status=0
wait "$mpirun" || status=$?
mpirun=

total=0
each=
for node in "${names[@]}"; do
    bytes=$(($(sent "$node") - before[$node]))
    total=$((total + bytes))
    each+=", $bytes from $node"
done
say "$total bytes crossed the bridge: ${each#, }"
exit "$status"
