#!/usr/bin/env bash
# Half an hour on a machine with a GPU where bench/gpu_check.sh has passed: what everything costs.
#   bash bench/gpu_half_hour.sh             all parts
#   bash bench/gpu_half_hour.sh PART...     some of them, where a command may not take that long;
#                                           --list says which there are, and their limits
#   bash bench/gpu_half_hour.sh --dry-run   the same on a CPU, tiny: does everything run?
# Results and interpreter as in gpu_check.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" bench/gpu/half_hour.py "$@"
