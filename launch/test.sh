#!/usr/bin/env bash
# All tests. Arguments go to pytest; without any, three processes take a module each, since ranks wait for each other and
# for time limits a good part of their time.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
fi
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # or each of dozens of processes compiles all modules anew
exec python -m pytest -n 3 --dist loadscope --no-loadscope-reorder --durations 15
