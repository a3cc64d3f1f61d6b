"""TRL's GRPOTrainer with our vote as its reward: no reference answer is read.

.venv/bin/pip install "trl>=1.16,<1.17"    then    .venv/bin/python examples/trl_votes.py
"""

import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from ttrl.data.arithmetic import question_rows
from ttrl.integrations.trl import majority_reward
from ttrl.models.pretrained import TINY_BASE

VOTES = 8

tokenizer = AutoTokenizer.from_pretrained(TINY_BASE)
prompts = [row["prompt"] for row in question_rows("train")]
trainer = GRPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(TINY_BASE),
    processing_class=tokenizer,
    reward_funcs=majority_reward(VOTES),
    train_dataset=Dataset.from_list(
        [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    ),
    args=GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="ttrl-trl-"),
        num_generations=VOTES,
        per_device_train_batch_size=4 * VOTES,
        max_completion_length=80,
        learning_rate=1.5e-4,
        max_steps=2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
    ),
)
trainer.train()
rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
print("share that agrees with the majority:", rewards)
