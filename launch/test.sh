#!/usr/bin/env bash
# All tests. Arguments go to pytest; without any, the tests of one process run beside those that start ranks, which wait
# for each other a good part of their time.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
one_process=(tests/kernels tests/unit)
output=$(mktemp)
OMP_NUM_THREADS=1 python -m pytest "${one_process[@]}" >"$output" 2>&1 &
beside=$!
trap 'kill "$beside" 2>/dev/null || true; rm -f "$output"' EXIT
status=0
python -m pytest "${one_process[@]/#/--ignore=}" || status=$?
wait "$beside" || status=$?
cat "$output"
exit "$status"
