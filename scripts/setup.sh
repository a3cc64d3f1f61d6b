#!/usr/bin/env bash
# Makes .venv with the locked versions; installs nothing when that has been done already.
#   bash scripts/setup.sh          what training needs
#   bash scripts/setup.sh test     the same and the test tools
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}

built_from=(pyproject.toml requirements.lock setup.py CMakeLists.txt kernels/csrc/*)
wanted=$( (cat "${built_from[@]}" && echo "${TTRL_BUILD_EXT:-auto}") | sha256sum | cut -d' ' -f1)
done_for() { [ "$(cat ".venv/.ttrl-$1" 2>/dev/null)" = "$wanted" ]; }
if done_for test || { [ -z "$extra" ] && done_for base; }; then exit 0; fi

if [ ! -x .venv/bin/python ]; then
    for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 ""; do
        if [ -z "$python" ]; then continue; fi
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    done
    if [ -z "$python" ]; then
        echo "setup: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3" >&2
        exit 1
    fi
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
echo "setup: installing the locked versions into .venv (once; torch is large)"
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
# torch comes first, since the C++ rows are built against it; cmake only where the system has none.
first=(setuptools torch ninja)
if ! command -v cmake >/dev/null; then first+=(cmake); fi
pip install --constraint requirements.lock "${first[@]}"
pip install --constraint requirements.lock --no-build-isolation --editable ".${extra:+[$extra]}"
if [ -e kernels/ttrl_kernels/_rows.txt ]; then
    echo "setup: C++ rows $(cat kernels/ttrl_kernels/_rows.txt)"
fi
echo "$wanted" >.venv/.ttrl-base
if [ "$extra" = test ]; then echo "$wanted" >.venv/.ttrl-test; fi
