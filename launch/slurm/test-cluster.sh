#!/usr/bin/env bash
# The SLURM scripts for real: one machine as a cluster of two nodes (two slurmd), gloo, a tiny synthetic catalog.
#     launch/slurm/test-cluster.sh [FOLDER]      what happened stays in FOLDER; without one, nothing stays
# A run on two nodes is preempted by another job, later requeued by hand, and has to end with the losses of a run that
# nobody disturbed; another one is cancelled and has to stay so. Needs root. Exit code 77: skipped, the reason is said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/tiny_run.sh

[ "$(id -u)" = 0 ] || skip "node daemons that start jobs need root"
needs "slurm-wlm or munge is" "slurm-wlm munge" slurmctld slurmd sbatch munged

# The cluster: all of it in one folder, on loopback, ended by process id.

cluster=$(mktemp -d)
folder=${1:-$cluster/out}
mkdir -p "$folder"
folder=$(realpath "$folder")
daemons=()
end() {
    if [ ${#daemons[@]} -gt 1 ]; then
        { scancel --me --full --signal=KILL; scancel --me; } 2>/dev/null || true
        for _ in {1..20}; do
            [ -n "$(squeue --noheader 2>/dev/null)" ] || break
            sleep 0.5
        done
    fi
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    rm -rf "$cluster"
}
trap end EXIT

machine=$(hostname -s)
mapfile -t ports < <(python - <<'PY'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(held.getsockname()[1] for held in sockets), sep="\n")
PY
)
mkdir -p "$cluster"/{munge,state,spool-n1,spool-n2}
chmod 755 "$cluster" "$cluster/munge"
(umask 077 && head -c 128 /dev/urandom >"$cluster/munge.key")
export SLURM_CONF=$cluster/slurm.conf
# cred_expire: a requeued job waits that long before it starts again; usually two minutes.
cat >"$SLURM_CONF" <<CONF
ClusterName=uatmc-test
SlurmctldHost=$machine(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$cluster/munge/socket,cred_expire=5
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool-%n
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd-%n.pid
SlurmctldLogFile=$cluster/slurmctld.log
SlurmdLogFile=$cluster/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
KillWait=60
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=$machine NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=2
NodeName=n2 NodeHostname=$machine NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
CONF
start() {
    "$@" >>"$cluster/daemons.out" 2>&1 &
    daemons+=($!)
}
start munged --foreground --key-file="$cluster/munge.key" --socket="$cluster/munge/socket" \
    --pid-file="$cluster/munge/pid" --log-file="$cluster/munge/log" --seed-file="$cluster/munge/seed"
until [ -S "$cluster/munge/socket" ]; do
    kill -0 "${daemons[0]}" 2>/dev/null || fail "munged ended: $(tail -n 3 "$cluster/daemons.out" "$cluster/munge/log")"
    sleep 0.1
done
start slurmctld -D
start slurmd -D -N n1
start slurmd -D -N n2
for _ in {1..60}; do
    [ "$(sinfo --noheader --partition=low --states=idle --format=%D 2>/dev/null)" = 2 ] && break
    sleep 0.5
done
[ "$(sinfo --noheader --partition=low --states=idle --format=%D)" = 2 ] ||
    fail "the nodes did not come up: $(tail -n 5 "$cluster"/*.log)"
say "two nodes are idle: $(sinfo --version), $(scontrol show hostnames n[1-2] | tr '\n' ' ')"

# The work.

export OMP_NUM_THREADS=1
export GLOO_SOCKET_IFNAME=lo # both nodes are this machine
make_tiny_run "$folder" 100
runs=$folder/runs
submit() { # [OPTION ...] CONFIG [OVERRIDE ...]: the number of the job
    launch/slurm/submit.sh --logs "$folder" "$@" | grep -o '[0-9]*$'
}
state() { scontrol show job "$1" 2>/dev/null | grep -o 'JobState=[A-Z]*' | head -n 1 | cut -d= -f2; }
restarts() { scontrol show job "$1" | grep -o 'Restarts=[0-9]*' | cut -d= -f2; }
steps() { wc -l 2>/dev/null <"$runs/$1/metrics.jsonl" || echo 0; }
until_true() { # SECONDS WHAT COMMAND ...
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$limit" ] || fail "waited in vain until $what: $(squeue); $(tail -n 20 "$folder"/slurm-*.out)"
        sleep 0.2
    done
}
has_steps() { [ "$(steps "$1")" -ge "$2" ]; }
is_state() { [ "$(state "$1")" = "$2" ]; }
has_restarts() { [ "$(restarts "$1")" -ge "$2" ]; }

say "a run on one node with two ranks, undisturbed; another one beside it is cancelled"
reference=$(submit --ranks-per-node 2 "$folder/tiny.yaml" name=reference seed=3)
cancelled=$(submit "$folder/tiny.yaml" name=cancelled clean.epochs=4000)
until_true 120 "the job to cancel trains" has_steps cancelled 20
scancel "$cancelled"
until_true 60 "it is cancelled" is_state "$cancelled" CANCELLED
[ -f "$runs/cancelled/checkpoints/latest" ] || fail "the cancelled job left no checkpoint"
until_true 120 "the undisturbed run ends" is_state "$reference" COMPLETED

say "a run on two nodes (array job, seed 3), preempted in the middle"
job=$(submit --nodes 2 --seeds 3 "$folder/tiny.yaml" name=disturbed)
until_true 120 "it trains" has_steps disturbed-seed3 40
urgent=$(sbatch --parsable --partition=high --nodes=2 --exclusive --output=/dev/null --wrap 'sleep 1')
until_true 90 "the urgent job has its nodes" is_state "$urgent" COMPLETED
has_restarts "${job}_3" 1 || fail "the preempted job was not requeued"
say "preempted at $(cat "$runs/disturbed-seed3/checkpoints/latest"), the urgent job is done"
at=$(steps disturbed-seed3)
until_true 120 "it goes on" has_steps disturbed-seed3 $((at + 40))
say "requeued by hand (scontrol requeue)"
scontrol requeue "${job}_3"
until_true 120 "it ends" is_state "${job}_3" COMPLETED
has_restarts "${job}_3" 2 || fail "the job did not start three times"
is_state "$cancelled" CANCELLED || fail "the cancelled job came back"
log=$folder/slurm-disturbed-${job}_3.out
[ "$(grep -c 'going on from' "$log")" = 2 ] || fail "the run did not go on twice: see $log"
[ -f "$runs/disturbed-seed3/model/model.safetensors" ] || fail "the run did not finish"

python tests/compare_runs.py "$runs/disturbed-seed3" "$runs/reference"
say "passed: preempted, requeued by hand, went on twice, finished; the cancelled job stayed cancelled"
