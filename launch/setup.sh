# Sourced by quickstart.sh and test.sh: an environment with all that is needed, from the project's folder.
# Uses the active virtual or conda environment; creates .venv where none is active. Quick when nothing changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [ -z "$environment" ]; then
    environment=$PWD/.venv
    if [ ! -x "$environment/bin/python" ]; then
        base=${PYTHON:-python3}
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "error: $("$base" --version) is too old; set PYTHON to a Python 3.10 or newer" >&2
            exit 2
        }
        echo "creating $environment"
        "$base" -m venv "$environment" || {
            echo "error: $base cannot make virtual environments; install python3-venv" >&2
            exit 2
        }
    fi
fi
export PATH="$environment/bin:$PATH"

kind=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then kind=cuda; fi

stamp=$environment/.uatmc-installed
wanted=$(cat launch/env/base.txt "launch/env/$kind.txt" setup.py kernels/pyproject.toml packaging/fbgemm-gpu-shim/setup.py | sha256sum)
wanted="$wanted $PWD"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    indexes=()
    if [ "$kind" = cpu ] && ! python -m pip install --quiet --dry-run --no-deps "torch==2.13.0+cpu" >/dev/null 2>&1; then
        # The default index serves torch with CUDA only; the CPU build comes from PyTorch's own.
        indexes=(--extra-index-url https://download.pytorch.org/whl/cpu)
    fi
    echo "installing launch/env/$kind.txt (a few minutes the first time)"
    python -m pip install --quiet --disable-pip-version-check ${indexes[@]+"${indexes[@]}"} -r "launch/env/$kind.txt"
    python -m pip check
    echo "$wanted" >"$stamp"
fi
