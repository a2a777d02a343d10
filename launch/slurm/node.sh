#!/usr/bin/env bash
# One node's share of train.sbatch: torchrun, which starts the ranks. Exits with 75 where it was interrupted.
# Arguments: machine of the first node, HOST:PORT where the ranks meet, ranks on a node, configuration, overrides.
source launch/slurm/lib.sh
first_machine=$1 meeting=$2 ranks=$3
shift 3

# SLURM signals every process of a step: torchrun and its ranks have the TERM already. Torchrun must not get a second
# one from here, which would break off its orderly end.
interrupted=
caught=
trap 'interrupted=yes caught=yes' TERM

if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    if [ "$(hostname)" != "$first_machine" ] && is_loopback "${meeting%:*}"; then
        fail "$SLURMD_NODENAME: ${meeting%:*} is this machine itself here; mend /etc/hosts or NodeAddr"
    fi
    if [ -z "${GLOO_SOCKET_IFNAME:-}" ] && is_loopback "$(hostname)"; then
        fail "$SLURMD_NODENAME: $(hostname) is a loopback address there; set GLOO_SOCKET_IFNAME to the interface to use"
    fi
fi
if [ -n "${SLURM_CPUS_PER_TASK:-}" ] && [ -z "${OMP_NUM_THREADS:-}" ]; then
    export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK > ranks ? SLURM_CPUS_PER_TASK / ranks : 1))
fi
# How long torchrun waits for its ranks to save after TERM. Its own default, 30 s, is short for large tables.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-55}

local_address=$(address_of "$SLURMD_NODENAME")
is_host=$((SLURM_NODEID == 0)) # said, not guessed from names: two node daemons may share a machine
[ -z "$interrupted" ] || exit 75
python launch/slurm/torchrun.py --nnodes="$SLURM_JOB_NUM_NODES" --nproc_per_node="$ranks" --max-restarts=2 \
    --rdzv_backend=c10d --rdzv_endpoint="$meeting" --rdzv_id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv_conf="is_host=$is_host,read_timeout=300" --local_addr="$local_address" train.py "$@" &
code=0
wait_for $! || code=$?
if [ "$code" != 0 ] && [ -n "$interrupted" ]; then code=75; fi
exit "$code"
