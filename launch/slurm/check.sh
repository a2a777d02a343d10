#!/usr/bin/env bash
# `uatmc doctor` on a node of a job: one line where all is well, all that it says where something is wrong.
source launch/slurm/lib.sh

trap 'exit 75' TERM
node=${SLURMD_NODENAME:-$(hostname)}
command -v python >/dev/null ||
    fail "$node: no python in PATH; make .venv with launch/test.sh, or activate an environment before submitting" 2
if said=$(python -c 'from uatmc_dist.cli import main; main()' doctor 2>&1); then
    echo "$node: environment is well ($(command -v python))"
else
    code=$?
    echo "$node: ${said//$'\n'/$'\n'$node: }" >&2
    exit "$code"
fi
