#!/usr/bin/env bash
# A real Slurm on one Linux machine, with nodes of unequal speed, for tests and for trying jobs.
#
# Usage: tests/cluster/cluster.sh install        install the packages it needs, with apt-get
#        tests/cluster/cluster.sh up             start the cluster; nothing to do if it is up
#        tests/cluster/cluster.sh run CMD...     run CMD on the login node: sbatch, squeue, bash
#        tests/cluster/cluster.sh speed NODE PERCENT...  what nodes get of one core from now on, also
#                                                while jobs run; 'max' is no limit
#        tests/cluster/cluster.sh status         what is up, and its jobs
#        tests/cluster/cluster.sh down           end every job and daemon, remove every trace
#        tests/cluster/cluster.sh check          can it run here? If not: why, and exit status 1
#
# HETMP_CLUSTER_NODES   "name:kind:cpus:speed[:gpus] ...": kind is the node's feature and its
#                       partition, speed the percentage of ONE real core that the whole node
#                       gets, gpus how many it advertises (there is no device behind them)
# HETMP_CLUSTER_DIR     its files: configuration, logs, state. Another folder is another cluster,
#                       and both may be up at once.
set -euo pipefail

nodes=${HETMP_CLUSTER_NODES:-fast1:fast:2:80:1 mid1:mid:2:40:1 slow1:slow:2:25}
dir=$(realpath -m -- "${HETMP_CLUSTER_DIR:-/tmp/hetmp-cluster}")
# Names of network namespaces and control groups are global to the machine. The folder's checksum
# in them tells whose they are, so that `down` takes only its own, whatever state that is in.
ours=hetmp-$(printf %s "$dir" | cksum | cut -d' ' -f1)
subnet=10.237.0 # seen inside the namespaces only, so every cluster may have the same
# Short, or a rank that has used its quota up would keep the others waiting for long.
period=20000 # µs
cgroups=/sys/fs/cgroup
packages=(slurm-wlm munge iproute2 libpmix-dev) # Slurm's mpi/pmix opens libpmix.so: only in -dev
export SLURM_CONF=$dir/etc/slurm.conf

fail() {
    printf 'cluster.sh: %s\n' "$*" >&2
    exit 1
}

need_root() { [ "$(id -u)" = 0 ] || fail "needs root, for namespaces and quotas: run it with sudo"; }

# --- can it run here? ----------------------------------------------------------------------------

check() {
    local program node name kind cpus speed gpus taken=" login "
    [ "$(uname)" = Linux ] || fail "needs Linux: run it in a virtual machine"
    need_root
    for program in slurmctld slurmd munged ip; do
        command -v $program >/dev/null || fail "found no $program: run '$0 install'"
    done
    unshare --net --uts --mount sh -c \
        'ip link add name hub type bridge && ip link add name east type veth peer name west' 2>/dev/null ||
        fail "this system lets root make no network: needs --privileged in a container"
    for node in $nodes; do
        IFS=: read -r name kind cpus speed gpus <<<"$node"
        [[ $node =~ ^[a-z][a-z0-9]*:[a-z][a-z0-9]*:[1-9][0-9]*:[1-9][0-9]*(:[0-9]+)?$ ]] ||
            fail "HETMP_CLUSTER_NODES has '$node': say name:kind:cpus:speed[:gpus]"
        [[ $taken != *" $name "* && $kind != all ]] ||
            fail "HETMP_CLUSTER_NODES has '$node': the name or the kind is taken"
        ((speed * period / 100 >= 1000)) ||
            fail "HETMP_CLUSTER_NODES has '$node': Linux has no quota below $((100000 / period)) %"
        taken+="$name "
    done
}

# --- one node ------------------------------------------------------------------------------------

namespaces() { ip netns list | awk -v prefix="$ours-" 'index($1, prefix) == 1 { print $1 }'; }

# on NODE CMD...: what a process on that node sees: its network and host name, the cluster's
# names, and shared memory that no other node has, without which MPI would find a neighbour's
# segments. Everything else is the machine's: HOME, /tmp and the checkout are shared file systems.
on() {
    local node=$1
    shift
    # shellcheck disable=SC2016
    ip netns exec "$ours-$node" unshare --uts --mount sh -c '
        hostname "$1" && mount --bind "$2" /etc/hosts || exit 1
        [ "$1" = login ] || mount -t tmpfs -o mode=1777 shm /dev/shm || exit 1
        shift 2
        exec "$@"' on "$node" "$dir/etc/hosts" "$@"
}

# A daemon starts in a bare environment; else a job could see what lay around where it was started.
daemon() {
    on "$1" env -i PATH="$PATH" HOME="$HOME" SLURM_CONF="$SLURM_CONF" "${@:2}" </dev/null \
        >"$dir/log/$2.$1.start" 2>&1 ||
        fail "$2 on $1 does not start: $(cat "$dir/log/$2.$1"* | tail -n 1) (logs: $dir/log)"
}

# Makes and prints the folder for this cluster's control groups: in the old hierarchy (v1, one per
# controller) or the new one (v2, one for all, where every parent must hand the controller down).
# Fails where neither can limit CPU time.
quota_folder() {
    local folder
    if [ -e $cgroups/cpu/cpu.shares ]; then
        folder=$cgroups/cpu/$ours
        mkdir -p "$folder" && echo 131072 >"$folder/cpu.shares" # the quota decides, not other load
    elif grep -qsw cpu $cgroups/cgroup.controllers; then
        folder=$cgroups/$ours
        echo +cpu >$cgroups/cgroup.subtree_control && mkdir -p "$folder" &&
            echo +cpu >"$folder/cgroup.subtree_control" && echo 10000 >"$folder/cpu.weight"
    else
        return 1
    fi 2>/dev/null || return 1
    echo "$folder"
}

# set_quota FOLDER SPEED: what runs in this control group gets SPEED percent of one core, or 'max'.
set_quota() {
    local quota=$2
    [ "$quota" = max ] || quota=$((period * $2 / 100))
    if [ -e "$1/cpu.cfs_quota_us" ]; then
        echo $period >"$1/cpu.cfs_period_us"
        echo "${quota/max/-1}" >"$1/cpu.cfs_quota_us"
    else
        echo "$quota $period" >"$1/cpu.max"
    fi
}

# limit FOLDER SPEED: so does this process, with its children.
limit() {
    mkdir -p "$1"
    set_quota "$@"
    echo "$BASHPID" >"$1/cgroup.procs"
}

# --- the whole cluster ---------------------------------------------------------------------------

configure() {
    local number=1 memory node name kind cpus speed gpus gpu
    local -A members=()
    mkdir -p "$dir"/{etc,log,run,state,spool,tmp}
    chmod 755 "$dir" "$dir"/{etc,log,run,state} # munged wants nobody else to write there
    touch "$dir/.hetmp-cluster"                 # what `down` may remove
    (umask 077 && head -c 1024 /dev/urandom >"$dir/etc/munge.key")
    echo "$nodes" >"$dir/etc/nodes"
    # slurmd loads a plugin for control groups even when nothing uses them. The one for v1 touches
    # none until then; the one for v2 would talk to systemd.
    echo CgroupPlugin=cgroup/v1 >"$dir/etc/cgroup.conf"
    echo AutoDetect=off >"$dir/etc/gres.conf"
    printf '127.0.0.1 localhost\n%s.1 login\n' $subnet >"$dir/etc/hosts"
    cat >"$SLURM_CONF" <<END
ClusterName=hetmp
SlurmctldHost=login($subnet.1)
SlurmUser=root
# A requeued job waits until its old credential has expired; 120 s by default.
AuthInfo=socket=$dir/run/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
# mpi/pmix keeps its files there, and the nodes share /tmp.
TmpFS=$dir/tmp/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.login
SlurmdLogFile=$dir/log/slurmd.%n
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobs
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
# As on most sites: who forgets --mpi=... gets single processes.
MpiDefault=none
# A node that was set down stays down until 'scontrol update ... state=resume'; one whose slurmd
# died is noticed within this many seconds (300 by default).
ReturnToService=0
SlurmdTimeout=30
KillWait=10
# Only the backfill scheduler starts heterogeneous jobs, every 30 s by default.
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
# Nodes may advertise more CPUs than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
END
    memory=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    # shellcheck disable=SC2086
    memory=$((memory / $(printf '%s\n' $nodes | wc -l))) # advertised, not enforced
    for node in $nodes; do
        IFS=: read -r name kind cpus speed gpus <<<"$node"
        number=$((number + 1))
        mkdir -p "$dir/spool/$name" "$dir/tmp/$name"
        chmod 1777 "$dir/tmp/$name"
        echo "$subnet.$number $name" >>"$dir/etc/hosts"
        gpu=
        if ((${gpus:-0})); then
            gpu=" Gres=gpu:$gpus"
            echo "NodeName=$name Name=gpu File=$dir/run/gpu[0-$((gpus - 1))]" >>"$dir/etc/gres.conf"
            # CUDA_VISIBLE_DEVICES comes from device files' numbers: copies of /dev/null.
            for ((; gpus > 0; gpus--)); do
                [ -e "$dir/run/gpu$((gpus - 1))" ] || mknod "$dir/run/gpu$((gpus - 1))" c 1 3
            done
        fi
        echo "NodeName=$name NodeAddr=$subnet.$number CPUs=$cpus RealMemory=$memory" \
            "Feature=$kind$gpu" >>"$SLURM_CONF"
        members[all]+=,$name
        members[$kind]+=,$name
    done
    for kind in "${!members[@]}"; do
        echo "PartitionName=$kind Nodes=${members[$kind]#,} MaxTime=INFINITE" \
            "Default=$([ "$kind" = all ] && echo YES || echo NO)" >>"$SLURM_CONF"
    done
}

is_up() { [ -e "$dir/run/up" ] && on login timeout 5 scontrol ping 2>/dev/null | grep -q 'is UP'; }

up() {
    local node name speed number=1 quotas="" note="" deadline started=$SECONDS
    check
    if is_up; then
        [ -z "${HETMP_CLUSTER_NODES:-}" ] || [ "$nodes" = "$(cat "$dir/etc/nodes")" ] ||
            fail "it is up with other nodes ($(cat "$dir/etc/nodes")): take it down first"
        echo "cluster.sh: already up: $(cat "$dir/etc/nodes"); use: $0 run sinfo"
        return
    fi
    down quietly # what a failed `up` or a reboot left
    [ -z "$(ls -A "$dir" 2>/dev/null)" ] || fail "$dir holds something else: set HETMP_CLUSTER_DIR"
    configure

    # The login node is the hub: a bridge, and to each node a cable.
    ip netns add "$ours-login"
    ip -n "$ours-login" link set lo up
    ip -n "$ours-login" link add hub type bridge
    ip -n "$ours-login" address add $subnet.1/24 dev hub
    ip -n "$ours-login" link set hub up
    daemon login munged --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.socket" \
        --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.login" \
        --seed-file="$dir/state/munge.seed"
    daemon login slurmctld

    quotas=$(quota_folder) || note="; all equally fast: no CPU quotas on this system"
    for node in $nodes; do
        IFS=: read -r name _ _ speed _ <<<"$node"
        number=$((number + 1))
        ip netns add "$ours-$name"
        ip -n "$ours-login" link add "to$number" type veth peer name eth0 netns "$ours-$name"
        ip -n "$ours-login" link set "to$number" master hub up
        ip -n "$ours-$name" link set lo up
        ip -n "$ours-$name" address add $subnet.$number/24 dev eth0
        ip -n "$ours-$name" link set eth0 up
        # slurmd and every job it starts inherit the control group from this subshell.
        (
            [ -z "$quotas" ] || limit "$quotas/$name" "$speed"
            daemon "$name" slurmd
        )
    done

    deadline=$((SECONDS + 60))
    until [ "$(on login sinfo -h -p all -t idle -o %D)" = $((number - 1)) ]; do
        ((SECONDS < deadline)) || fail "not every node answers after 60 s (logs: $dir/log)"
        sleep 0.2
    done
    touch "$dir/run/up"
    echo "cluster.sh: up after $((SECONDS - started)) s: $nodes$note; use: $0 run sinfo"
}

down() {
    local name folder signal pids tries
    case $(ip netns identify $$) in "$ours"-*) fail "leave the cluster's shell first" ;; esac
    for signal in TERM KILL; do # only what lives in our namespaces
        for tries in {1..20}; do
            pids=$(for name in $(namespaces); do ip netns pids "$name"; done)
            [ -n "$pids" ] || break 2
            # shellcheck disable=SC2086
            ((tries % 10 != 1)) || kill -s $signal $pids 2>/dev/null || :
            sleep 0.2
        done
    done
    for name in $(namespaces); do ip netns delete "$name"; done
    for folder in "$cgroups/cpu/$ours" "$cgroups/$ours"; do
        [ -d "$folder" ] || continue
        for tries in {1..20}; do # the kernel takes a moment to forget the processes
            find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.1
        done
    done
    if [ -e "$dir/.hetmp-cluster" ]; then rm -rf -- "$dir"; fi
    [ "${1:-}" = quietly ] || echo "cluster.sh: down"
}

speed() {
    local folder
    need_root
    is_up || fail "down: start it with '$0 up'"
    folder=$(quota_folder) || fail "no CPU quotas on this system: all nodes are equally fast"
    [ $# -gt 0 ] || fail "say which nodes get how much: '$0 speed fast1 80 slow1 max'"
    while [ $# -gt 0 ]; do
        [ -d "$folder/$1" ] || fail "there is no node '$1': the nodes are $(cat "$dir/etc/nodes")"
        [ "${2:-}" = max ] || { [[ ${2:-} =~ ^[1-9][0-9]*$ ]] && ((period * $2 / 100 >= 1000)); } ||
            fail "'${2:-}' is not a speed for $1: give $((100000 / period)) percent or more, or max"
        set_quota "$folder/$1" "$2"
        shift 2
    done
}

status() {
    need_root
    is_up || fail "down: start it with '$0 up'"
    echo "name:kind:cpus:speed[:gpus]  $(cat "$dir/etc/nodes")"
    on login sinfo -N -o "%10N %10P %10f %5c %10m %10G %8t %E"
    on login squeue
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
    check | up | status) $command ;;
    install)
        need_root
        command -v apt-get >/dev/null || fail "found no apt-get: install ${packages[*]} your way"
        apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"
        ;;
    speed) speed "$@" ;;
    down)
        need_root
        command -v ip >/dev/null || fail "found no ip: run '$0 install'"
        down
        ;;
    run)
        need_root
        [ -e "$dir/run/up" ] || fail "down: start it with '$0 up'"
        [ $# -gt 0 ] || fail "say what to run: '$0 run sinfo'"
        on login "$@"
        ;;
    *) sed -n '/^# /,/^set /{/^#/s/^# \{0,1\}//p}' "$0" && exit 2 ;;
esac
