# shellcheck shell=bash
# Sourced by launch/slurm/test-cluster.sh and launch/hosts/two-hosts.sh, from the project's folder.
set -euo pipefail

skip() {
    echo "skipped: $1"
    exit 77
}
fail() {
    echo "error: $1" >&2
    exit 1
}
say() { echo "== $((SECONDS / 60)):$(printf %02d $((SECONDS % 60))) $1"; }

needs() { # WHAT PACKAGES COMMAND ...: installs the packages where a command is missing, or skips
    local what=$1 packages=$2
    shift 2
    if type "$@" >/dev/null 2>&1; then return; fi
    command -v apt-get >/dev/null || skip "$what missing, and there is no apt-get to install it"
    # shellcheck disable=SC2086
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $packages; } >/dev/null 2>&1 ||
        skip "$what missing, and apt-get could not install it"
}

if [ -z "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ] && [ -x .venv/bin/python ]; then export PATH="$PWD/.venv/bin:$PATH"; fi

make_tiny_run() { # FOLDER CHECKPOINT_EVERY: FOLDER/tiny.yaml and its catalog; some 250 steps, a metrics line each
    python -m uatmc_dist.cli data synthesize "$1/catalog" --overwrite --users 230 \
        --items 203 --interactions 1600 --visual-dim 20 --text-dim 12 >/dev/null
    cat >"$1/tiny.yaml" <<YAML
name: tiny
catalog: $1/catalog
output_dir: $1/runs
model: {embedding_dim: 8, visual_hidden: [16, 12], text_hidden: [12]}
tables: {lr: 0.1}
training: {batch_size: 128, lr: 0.01}
clean: {epochs: 20, objective: full_catalog}
adversarial: {epochs: 8}
evaluation: {users_per_batch: 100, every_epochs: 10}
checkpoint: {every_steps: $2}
logging: {every_steps: 1}
YAML
}
