#!/usr/bin/env bash
# The first ten minutes on a machine with a GPU: correctness, then the speed of the kernels.
#   bash bench/gpu_check.sh             all parts, most telling first
#   bash bench/gpu_check.sh PART...     some of them; --list says which there are
#   bash bench/gpu_check.sh --dry-run   the same on a CPU, tiny: does everything run?
# Each part writes NAME.json as it ends, into --output, $OUT, or bench/results/gpu. PYTHON names the
# interpreter (default .venv's, or else python3); a part whose packages are not in it is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" bench/gpu/check.py "$@"
