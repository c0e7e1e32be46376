#!/usr/bin/env bash
# bash run.sh                make the environment and the sample once, measure, print the factsheet table
# bash run.sh test           lint, check types and run the tests; it takes minutes
# bash run.sh test --slow    run only the slow tests
# bash run.sh all            measure every model except variants, each in its own process; a bad one loses only its own row
# bash run.sh speed          measure the speed of the evaluation and the network, as ratios to the plain protocol
# bash run.sh COMMAND …      run a command in the environment, such as: bash run.sh python eval.py --model_id 7
# PYTHON=python3.14 bash run.sh …    make the environment with this Python
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
    echo "error: no Python 3.11 to 3.14 found on the PATH; install one and run this again" >&2
    return 1
}

# Install what a requirements file pins, unless .venv was made from exactly these pins.
install() {
    if cat requirements.txt "$1" | cmp --silent - ".venv/$1.stamp"; then
        return
    fi
    if [ ! -x .venv/bin/pip ]; then  # without pip if Debian lacked python3-venv when .venv was made
        local python
        python=$(find_python)
        echo "making .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    echo "installing the packages in $1: this takes one to several minutes, most of it for PyTorch, the largest"
    .venv/bin/python -m pip install --disable-pip-version-check --requirement "$1"
    cat requirements.txt "$1" >".venv/$1.stamp"
}

install requirements.txt
export PATH="$PWD/.venv/bin:$PATH"

case "${1:-}" in
"")
    python -m utils.data.sample
    echo "measuring four networks on the sample; the first, in its training form, takes longest"
    python eval.py --model_id 107 7 0 126 --data_dir data/sample --runs 2 --warmup 1 --repeats 5
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
    install requirements-dev.txt
    ruff check .
    ruff format --check .
    mypy
    # Quick tests use one core each; slow tests use all cores.
    parallel=(--numprocesses logical --maxprocesses 4)
    [[ " $* " == *" --slow "* ]] && parallel=()
    python -m pytest "${parallel[@]}" "$@"
    ;;
*)
    "$@"
    ;;
esac
