#!/bin/sh
# Makes .venv from the hashed locks. Every lock is complete, so nothing is resolved and nothing comes without its hash.
# ACCORD_TORCH=cpu or cuda asks for that build of torch; without it the CPU build is taken where pip is offered one.
set -eu
python=${PYTHON:-python3.11}
command -v "$python" > /dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Accord needs Python 3.11; name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=".venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps"
locked() { $pip --require-hashes -r "$1"; }

build=${ACCORD_TORCH:-auto}
case "$build" in auto | cpu | cuda) ;; *) echo "ACCORD_TORCH is $build; allowed: cpu, cuda, auto" >&2; exit 1 ;; esac
echo "installing from the locks (torch's CPU build is about 190 MB, the rest about 450 MB)"
$pip --require-hashes -r requirements.lock & # beside torch, with which it shares no package: each takes one core
rest=$!
trap 'kill "$rest" 2> /dev/null || true' EXIT
if [ "$build" != cuda ] && locked requirements-torch-cpu.lock 2> .venv/torch-cpu.log; then
    echo "torch: the CPU build"
elif [ "$build" = cpu ]; then
    cat .venv/torch-cpu.log >&2
    echo "pip was offered no CPU build of torch; name its index in PIP_EXTRA_INDEX_URL or its folder in PIP_FIND_LINKS (README.md, Installation)" >&2
    exit 1
else
    echo "torch: the package index's build (over 500 MB; README.md, Installation, says how to get the CPU build)"
    locked requirements-torch.lock
    if grep -q "^cuda: .*= '" .venv/lib/python3.11/site-packages/torch/version.py; then
        echo "it is the CUDA build; installing its libraries (several GB)"
        locked requirements-cuda.lock
    fi
fi
wait "$rest"
trap - EXIT
locked requirements-embedded.lock
$pip --no-build-isolation --editable .
touch .venv/.accord-installed
