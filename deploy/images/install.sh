#!/bin/sh
# Fills /opt/accord, a virtual environment without pip, inside a build stage of the Dockerfile.
#   install.sh package                     the accord distribution alone
#   install.sh torch cpu|cuda              that build of torch and what it needs
#   install.sh locks LOCK... [NAME@LOCK]   everything of the locks; one package of a lock where it is named
# What nobody runs is removed (tests, headers, pyarrow's own object stores), and the bytecode of large packages of which a process imports little: together a
# third of an image. Of sympy each process that computes imports four hundred modules, by way of torch, and a read-only root file system keeps nothing
# that is compiled at a start: its bytecode stays, but for what torch has no use for.
set -eu
python=/opt/accord/bin/python
packages=/opt/accord/lib/python3.11/site-packages
python -m venv --without-pip /opt/accord
locked() { python -m pip --python "$python" install --quiet --no-deps --require-hashes --compile -r "$1"; }

trim() {
    for path in torch/test torch/include torch/share numba/tests numba/cuda/tests numpy/_core/tests numpy/tests pandas/tests pyarrow/tests \
        pyarrow/include pyarrow/src pyarrow/libarrow_flight.so* pyarrow/libarrow_python_flight.so* pyarrow/_flight*.so \
        matplotlib/tests mpl_toolkits/tests networkx/*/tests sympy/*/tests sympy/*/*/tests sympy/*/*/*/tests nltk/test scipy/*/tests fontTools/*/tests; do
        rm -rf "${packages:?}"/$path
    done
    for path in pyarrow/libarrow_s3.so* pyarrow/_s3fs*.so pyarrow/_gcsfs*.so pyarrow/_azurefs*.so \
        transformers/models/*/__pycache__ sympy/combinatorics/__pycache__ sympy/physics/__pycache__ sympy/physics/*/__pycache__ sympy/polys/benchmarks \
        sympy/stats/__pycache__ sympy/stats/*/__pycache__ sympy/vector/__pycache__ networkx/*/__pycache__ networkx/*/*/__pycache__ fontTools/*/__pycache__ fontTools/*/*/__pycache__ \
        matplotlib/__pycache__ matplotlib/*/__pycache__ torch/_inductor/__pycache__ torch/_inductor/*/__pycache__ torch/testing/*/__pycache__ \
        torch/testing/*/*/__pycache__ kubernetes/aio kubernetes/docs kubernetes/test kubernetes/e2e_test; do
        rm -rf "${packages:?}"/$path
    done
    [ ! -d "$packages/torch/bin" ] || find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete
    [ ! -d "$packages/botocore/data" ] || find "$packages/botocore/data" -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name sso ! -name sso-oidc -exec rm -rf {} +
    find "$packages" -name '*.a' -delete -o -name '*.pyi' -delete -o -name '*.pyx' -delete -o -name '*.pxd' -delete
}

one() { # NAME LOCK: a package's entry
    awk -v name="$1==" '/^[^ ]/ { wanted = index($0, name) == 1 } wanted' "$2"
}

case "$1" in
package)
    python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
    python -m pip --python "$python" install --quiet --no-deps --compile dist/*.whl ;;
torch)
    case "$2" in
    cpu) locked requirements-torch-cpu.lock || {
        echo "pip was offered no CPU build of torch: name its index in PIP_EXTRA_INDEX_URL, or its folder in PIP_FIND_LINKS" >&2
        exit 1
    } ;;
    cuda) # two commands: `set -e` would let a failed first one of `a && b` pass
        locked requirements-torch.lock
        locked requirements-cuda.lock ;;
    *) echo "TORCH is '$2'; allowed: cpu, cuda" >&2 && exit 1 ;;
    esac
    trim ;;
locks)
    shift
    for lock; do
        case "$lock" in
        *@*)
            one "${lock%@*}" "${lock#*@}" > one.lock
            [ -s one.lock ] || { echo "${lock#*@} names no package ${lock%@*}" >&2 && exit 1; }
            locked one.lock ;;
        *) locked "$lock" ;;
        esac
    done
    trim ;;
*) echo "install.sh: unknown step '$1'" >&2 && exit 1 ;;
esac
