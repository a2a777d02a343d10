#!/usr/bin/env bash
# The whole product on one machine: a synthetic catalog, one clean model, four defences trained from it (none, UAT,
# UAT-MC, certified), all attacked and certified, one table, one report page; then a small shop with photos, one of
# which is changed until it sells. A few minutes on two CPU cores. Run again: goes on.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)))')
ranks=$((cores < 2 ? 1 : 2))
if [ "$kind" = cuda ]; then ranks=$(python -c 'import torch; print(max(1, torch.cuda.device_count()))'); fi
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

echo "== a shop with photos"
[ -f data/quickstart-shop/catalog.json ] ||
    uatmc data synthesize data/quickstart-shop --photos --users 600 --items 400 --interactions 5000
train quickstart-shop catalog=data/quickstart-shop adversarial.epochs=0
train quickstart-shop-certified catalog=data/quickstart-shop start_from=runs/quickstart-shop \
    adversarial.adversary=certified adversarial.budget=any_content adversarial.epochs=3
for name in quickstart-shop quickstart-shop-certified; do
    uatmc attack-content "runs/$name" 'content_attack.attacks=[pixels, words, both]' content_attack.num_targets=3 \
        'content_attack.pixels=[4]' 'content_attack.edits=[1]' 'content_attack.formats=[png]' content_attack.steps=16
done
uatmc report runs/quickstart-shop runs/quickstart-shop-certified --out runs/quickstart-photos.html
[ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ] || echo "next: source .venv/bin/activate, then uatmc --help, or your own shop (README.md)"
