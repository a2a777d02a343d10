#!/usr/bin/env bash
# Two "machines" (network namespaces joined by a cable, addresses 10.77.0.1 and 10.77.0.2) train one run. The first one
# is lost twice and comes back twice: once its processes die, once its cable is pulled before they do, so that the other
# one hears nothing. The run has to end with the losses of an undisturbed one.
#     launch/hosts/two-hosts.sh [FOLDER]      what happened stays in FOLDER; without one, nothing stays
# Needs root. Exit code 77: skipped, the reason is said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source tests/tiny_run.sh

[ "$(id -u)" = 0 ] || skip "network namespaces need root"
needs "iproute2 is" iproute2 ip

scratch=$(mktemp -d)
folder=${1:-$scratch}
mkdir -p "$folder"
folder=$(realpath "$folder")
north=uatmc-north-$$ south=uatmc-south-$$
lose() { # MACHINE: all its processes at once, as when its power fails
    local pids
    pids=$(ip netns pids "$1" 2>/dev/null) || true
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
}
end() {
    for machine in "$north" "$south"; do
        lose "$machine"
        ip netns delete "$machine" 2>/dev/null || true
    done
    wait
    rm -rf "$scratch"
}
trap end EXIT
{ ip netns add "$north" && ip netns add "$south" &&
    ip link add eth0 netns "$north" type veth peer name eth0 netns "$south"; } 2>"$scratch/why" ||
    skip "no network namespaces here: $(head -n 1 "$scratch/why")"
number=1
for machine in "$north" "$south"; do
    ip -n "$machine" address add "10.77.0.$number/24" dev eth0
    ip -n "$machine" link set lo up
    ip -n "$machine" link set eth0 up
    number=$((number + 1))
done

export OMP_NUM_THREADS=1
make_tiny_run "$folder" 20
runs=$folder/runs
steps() { wc -l 2>/dev/null <"$runs/two-hosts/metrics.jsonl" || echo 0; }
wait_for_steps() { # COUNT
    local limit=$((SECONDS + 180))
    until [ "$(steps)" -ge "$1" ]; do
        [ "$SECONDS" -lt "$limit" ] || fail "waited in vain for step $1: $(tail -n 20 "$folder"/*.log)"
        sleep 0.2
    done
}

# TORCH_DISABLE_SHARE_RDZV_TCP_STORE: docs/slurm.md, "Several machines without SLURM".
# The second machine serves the rendezvous and stays. Ranks go by address, so the one that is lost has rank 0, which
# also writes metrics.jsonl.
boot() { # MACHINE ADDRESS IS_HOST: starts its torchrun, as a person would
    GLOO_SOCKET_IFNAME=eth0 TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 ip netns exec "$1" \
        python -m torch.distributed.run --nnodes=2 --nproc_per_node=1 --max-restarts=3 \
        --rdzv_backend=c10d --rdzv_endpoint=10.77.0.2:29400 --rdzv_id=two-hosts \
        --rdzv_conf="is_host=$3,keep_alive_interval=2" --local_addr="$2" \
        train.py "$folder/tiny.yaml" name=two-hosts >>"$folder/$2.log" 2>&1 &
}
say "the undisturbed run: two ranks on one machine"
python -m torch.distributed.run --standalone --nproc_per_node=2 train.py "$folder/tiny.yaml" name=reference \
    >"$folder/reference.log" 2>&1 ||
    fail "the undisturbed run failed: $(tail -n 20 "$folder/reference.log")"

say "10.77.0.1 and 10.77.0.2 start"
boot "$south" 10.77.0.2 1
stayed=$!
boot "$north" 10.77.0.1 0
wait_for_steps 40
say "10.77.0.1 is lost: its processes die (at line $(steps) of metrics.jsonl)"
lose "$north"
wait $! 2>/dev/null || true
sleep 2
say "10.77.0.1 comes back"
boot "$north" 10.77.0.1 0
wait_for_steps $(($(steps) + 40))
say "10.77.0.1 is lost again, without a word: its cable is pulled first (at line $(steps))"
ip -n "$north" link set eth0 down
lose "$north"
wait $! 2>/dev/null || true
sleep 5
say "10.77.0.1 comes back"
ip -n "$north" link set eth0 up
boot "$north" 10.77.0.1 0
returned=$!
wait "$stayed" || fail "10.77.0.2 failed: $(tail -n 20 "$folder/10.77.0.2.log")"
wait "$returned" || fail "10.77.0.1 failed: $(tail -n 20 "$folder/10.77.0.1.log")"
[ "$(grep -c 'going on from' "$folder/10.77.0.1.log")" = 2 ] ||
    fail "the run did not go on twice: see $folder/10.77.0.1.log"

python tests/compare_runs.py "$runs/two-hosts" "$runs/reference"
say "passed: lost twice, back twice, finished"
