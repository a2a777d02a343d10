#!/usr/bin/env bash
# The whole product on one machine: a synthetic catalog, one clean model, four defences trained from it (none, UAT,
# UAT-MC, certified), all attacked and certified, one table, one report page. A few minutes on two CPU cores. Run
# again: goes on.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
ranks=$((cores < 2 ? 1 : 2))
if [ "$kind" = cuda ]; then ranks=$(nvidia-smi -L | grep -c GPU); fi
threads=$((cores / ranks > 0 ? cores / ranks : 1)) # of a rank; what runs alone takes all cores

train() { # NAME [option=value ...]
    local name=$1
    shift
    if [ -f "runs/$name/model/model.safetensors" ]; then
        echo "== $name: trained already"
        return
    fi
    echo "== $name: training on $ranks ranks"
    OMP_NUM_THREADS=$threads python -m torch.distributed.run --standalone --nproc_per_node="$ranks" train.py \
        configs/quickstart.yaml name="$name" "$@"
}

if [ ! -f data/quickstart/catalog.json ]; then
    echo "== catalog"
    uatmc data synthesize data/quickstart
fi
train quickstart-clean adversarial.epochs=0
runs=()
for adversary in none uat uat_mc certified; do
    name=quickstart-$adversary
    train "$name" start_from=runs/quickstart-clean adversarial.adversary="$adversary"
    [ -f "runs/$name/evaluation.json" ] || uatmc evaluate "runs/$name"
    [ -f "runs/$name/attack.json" ] || uatmc attack "runs/$name"
    [ -f "runs/$name/certificate.json" ] || uatmc certify "runs/$name"
    [ -f "runs/$name/mismatch.json" ] || uatmc mismatch "runs/$name"
    runs+=("runs/$name")
done
echo
uatmc compare "${runs[@]}"
uatmc report "${runs[@]}" --out runs/quickstart-report.html
