# shellcheck shell=bash
# Sourced by the scripts beside it. They run with the project's folder as working directory.
set -euo pipefail

fail() { # MESSAGE [EXIT CODE]
    echo "error: $1" >&2
    exit "${2:-1}"
}

# The exit code of a child. A trap that runs meanwhile ends bash's `wait` early: such a trap sets `caught`.
wait_for() { # PID
    local code
    while true; do
        caught=
        code=0
        wait "$1" || code=$?
        [ -n "$caught" ] || return "$code"
    done
}

# How the other nodes reach a node: by its name, or where that does not resolve by what slurm.conf says.
address_of() { # NODE
    local address=$1
    if ! getent ahosts "$address" >/dev/null; then
        address=$(scontrol show node "$1" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2) || true
        if [ -z "$address" ] || ! getent ahosts "$address" >/dev/null; then
            fail "node $1: its name does not resolve, and slurm.conf has no NodeAddr for it that does; add one of them"
        fi
    fi
    echo "$address"
}

is_loopback() { # NAME OR ADDRESS: whether this machine resolves it to itself
    case $(getent ahosts "$1" | head -n 1) in 127.* | ::1\ *) true ;; *) false ;; esac
}
