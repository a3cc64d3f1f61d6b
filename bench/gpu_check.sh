#!/usr/bin/env bash
# Correctness, then speed, of ttrl_kernels on this machine's GPU, in less than ten minutes.
#   bash bench/gpu_check.sh             writes bench/results/kernels_cuda.json and .md
#   bash bench/gpu_check.sh --dry-run   the same on a CPU with tiny shapes: does everything run?
# Further arguments go to the bench's pytest. PYTHON names the interpreter (default .venv's, or
# else python3); PyTorch with CUDA, Triton, pytest and pytest-benchmark have to be installed in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD/kernels:$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [ "${1:-}" = --dry-run ]; then
    shift
    export CUDA_VISIBLE_DEVICES="" TORCHDYNAMO_DISABLE=1
    profile=tiny output=$(mktemp -d) tests=(tests/kernels/test_cuda.py)
else
    "$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA device"'
    profile=cuda output=bench/results tests=(tests/kernels/test_cuda.py tests/kernels/test_triton_rows.py)
fi
# Wrong numbers end the script here: no speed without correctness.
"$python" -m pytest -q "${tests[@]}"
"$python" -m pytest -q bench/kernels --profile "$profile" --output "$output" --benchmark-quiet "$@"
echo "written: $output/kernels_$profile.json and .md"
