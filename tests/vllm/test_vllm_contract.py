"""Every symbol of vLLM that we use is there, and the check would say if one were not."""

from __future__ import annotations

import pytest
from python_process import run_python

CODE = """
from ttrl.rollout.engines import vllm_contract
print(vllm_contract.broken_contract())
vllm_contract.CONTRACT.update({"vllm.LLM.no_such": (), "vllm.SamplingParams": ("n", "no_field")})
print(vllm_contract.broken_contract())
"""


@pytest.mark.usefixtures("vllm_version")
def test_the_installed_vllm_keeps_the_contract() -> None:
    done = run_python("-c", CODE)
    assert done.returncode == 0, done.stderr[-4000:]
    kept, broken = done.stdout.strip().splitlines()[-2:]
    assert kept == "[]"
    assert "vllm.LLM.no_such" in broken and "vllm.SamplingParams: no_field" in broken
