# shellcheck shell=bash
# Sourced by launch/slurm/test-cluster.sh and launch/hosts/two-hosts.sh, from the project's folder.

make_tiny_run() { # FOLDER CHECKPOINT_EVERY: FOLDER/tiny.yaml and its catalog; some 250 steps, a metrics line each
    python -c 'from uatmc_dist.cli import main; main()' data synthesize "$1/catalog" --overwrite --users 230 \
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
