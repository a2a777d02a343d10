#!/usr/bin/env bash
set -euo pipefail

usage="Submits a training run to SLURM: launch/slurm/train.sbatch, on one node or several.

    launch/slurm/submit.sh [options] CONFIG [option=value ...]

    --nodes N            machines (1)
    --gpus-per-node G    GPUs on each, one rank a GPU
    --ranks-per-node R   ranks on each machine without GPUs (1)
    --cpus-per-node C    cores on each
    --time LIMIT         as sbatch has it: minutes, hours:minutes:seconds, days-hours
    --partition NAME
    --seeds LIST         an array job, one run a seed: 0-4 or 1,3,7; NAME becomes NAME-seed3
    --logs FOLDER        what the job prints: FOLDER/slurm-NAME-JOB.out (runs)
    --dry-run            print what would be submitted; SLURM need not be there
    --help

What else sbatch takes comes from its environment: SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_CONSTRAINT. See docs/slurm.md."

fail() {
    echo "error: $1" >&2
    exit 2
}
is_count() { [[ $1 =~ ^[1-9][0-9]{0,5}$ ]]; }

nodes=1 gpus='' ranks='' cpus='' limit='' partition='' seeds='' logs='' dry_run=''
while [ $# -gt 0 ]; do
    option=${1%%=*}
    case $option in
        --help)
            echo "$usage"
            exit 0
            ;;
        --dry-run)
            [ "$1" = --dry-run ] || fail "--dry-run: takes no value"
            dry_run=yes
            shift
            continue
            ;;
        --nodes | --gpus-per-node | --ranks-per-node | --cpus-per-node | --time | --partition | --seeds | --logs) ;;
        -*) fail "$option: no such option; see launch/slurm/submit.sh --help" ;;
        *) break ;;
    esac
    if [ "$1" != "$option" ]; then
        value=${1#*=}
        shift
    else
        [ $# -ge 2 ] || fail "$option: a value is missing"
        value=$2
        shift 2
    fi
    case $option in
        --nodes | --gpus-per-node | --ranks-per-node | --cpus-per-node)
            is_count "$value" || fail "$option $value: a whole number from 1 is needed"
            ;;
        --time)
            [[ $value =~ ^([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}$ ]] ||
                fail "--time $value: minutes, hours:minutes:seconds or days-hours:minutes are needed"
            ;;
        --partition)
            [[ $value =~ ^[A-Za-z0-9_][A-Za-z0-9_.,-]*$ ]] ||
                fail "--partition $value: the name of a partition is needed"
            ;;
        --seeds)
            [[ $value =~ ^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$ ]] ||
                fail "--seeds $value: a list such as 0-4 or 1,3,7 is needed"
            ;;
    esac
    case $option in
        --nodes) nodes=$value ;;
        --gpus-per-node) gpus=$value ;;
        --ranks-per-node) ranks=$value ;;
        --cpus-per-node) cpus=$value ;;
        --time) limit=$value ;;
        --partition) partition=$value ;;
        --seeds) seeds=$value ;;
        --logs) logs=$(realpath -m "$value") ;;
    esac
done
[ $# -gt 0 ] || fail "a configuration is missing; see launch/slurm/submit.sh --help"
[ -z "$gpus" ] || [ -z "$ranks" ] || fail "--ranks-per-node: with --gpus-per-node there is one rank a GPU; leave it out"
config=$1
shift
[ -f "$config" ] || fail "$config: no such file; give a YAML configuration, for example configs/default.yaml"
config=$(realpath "$config")
job_name=$(basename "$config" .yaml)
for override in "$@"; do
    case $override in
        --overwrite) fail "--overwrite: a job that comes back would delete its own work; remove the run's folder" ;;
        -*) fail "$override: options come before the configuration; see launch/slurm/submit.sh --help" ;;
        seed=*) [ -z "$seeds" ] || fail "$override: --seeds sets the seed already; leave one of them out" ;;
        name=*) job_name=${override#name=} ;;
        ?*=*) ;;
        *) fail "$override: not an override; write section.option=value" ;;
    esac
done

root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
logs=${logs:-$root/runs}
script=$root/launch/slurm/train.sbatch
command=(sbatch --chdir="$root" --job-name="$job_name" --nodes="$nodes")
[ -z "$gpus" ] || command+=(--gpus-per-node="$gpus")
[ -z "$cpus" ] || command+=(--cpus-per-task="$cpus")
[ -z "$limit" ] || command+=(--time="$limit")
[ -z "$partition" ] || command+=(--partition="$partition")
if [ -n "$seeds" ]; then
    command+=(--array="$seeds" --output="$logs/slurm-%x-%A_%a.out")
else
    command+=(--output="$logs/slurm-%x-%j.out")
fi
command+=("$script" "${gpus:-${ranks:-1}}" "$config" "$@")

if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"
    printf '\n\n'
    cat "$script"
    exit 0
fi
command -v sbatch >/dev/null || fail "sbatch: not found; run this on a machine of a SLURM cluster, or add --dry-run"
mkdir -p "$logs"
exec "${command[@]}"
