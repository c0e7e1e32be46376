#!/usr/bin/env bash
# bash run.sh         make the environment and the sample once, measure, print the factsheet table
# bash run.sh test    lint and test
# bash run.sh all     measure every model but variants of others, each in its own process: a bad one costs its own row
# bash run.sh speed   measure the speed of evaluation and network, as ratios to the plain protocol
# PYTHON=python3.14 bash run.sh …      make the environment with this one
# bash run.sh COMMAND ARGUMENTS …    run a command in the environment, such as: bash run.sh python eval.py --model_id 7
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.{13,12,11,14} python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: needs Python 3.11 to 3.14 on the PATH; install one and run again" >&2
    return 1
}

# The stamp holds the pins that the environment was made from: other pins, another environment.
if ! cmp --silent requirements.txt .venv/requirements.stamp; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    "$python" -m venv .venv
    # A bare "torch" would fetch gigabytes of CUDA packages even where a CPU build is provided.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt .venv/requirements.stamp
fi
export PATH="$PWD/.venv/bin:$PATH"

case "${1:-}" in
"")
    python -m utils.data.sample
    python eval.py --model_id 107 7 0 126 --data_dir data/sample
    ;;
all)
    shift
    python eval.py --isolated "$@"
    ;;
speed)
    shift
    python -m benchmarks.speed "$@"
    ;;
test)
    shift
    ruff check .
    ruff format --check .
    python -m pytest "$@"
    ;;
*)
    "$@"
    ;;
esac
