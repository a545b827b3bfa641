#!/bin/sh
# Makes .venv from the hashed locks. Every lock is complete, so nothing is resolved and nothing comes without its hash.
set -eu
python=${PYTHON:-python3.11}
command -v "$python" > /dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Accord needs Python 3.11; name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
locked() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$1"; }
echo "installing from the locks (torch's CPU build is about 190 MB, the rest about 450 MB)"
locked requirements-torch.lock
if .venv/bin/python -c 'import importlib.metadata as m, sys; sys.exit("+cpu" in m.version("torch"))'; then
    echo "pip was offered the CUDA build of torch; installing its libraries (several GB; README.md says how to get the CPU build)"
    locked requirements-cuda.lock
fi
locked requirements.lock
locked requirements-embedded.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch .venv/.accord-installed
