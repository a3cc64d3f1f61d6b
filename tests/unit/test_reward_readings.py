"""Readings of reward models, each against a slow direct computation on a small random model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Model,
)

from ttrl.reward_models import make_reward_model, reduce
from ttrl.reward_models.heads import QwenPrm
from ttrl.reward_models.reading import token_at
from ttrl.reward_models.texts import harmless, steps_of
from ttrl.settings.recipe import load_settings
from ttrl.types import Question, UserError

CHAT = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
QUESTION = Question("q", "What is 7 + 5?\n", (1,), "What is 7 + 5?")
SOLUTIONS = [
    "7+5=12\n\nso \\boxed{12}",
    "It is 13.\n\n\n\nNo: 12.\n\nSo 12.\n\n",
    "",
    "ки + ю <|end|>",
]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the control tokens of a chat and of two readings."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT
    )
    made.add_special_tokens({"additional_special_tokens": ["<extra_0>", "<|turn|>"]})
    return made


def config(**options: Any) -> Qwen2Config:
    torch.manual_seed(3)
    return Qwen2Config(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        initializer_range=0.3,
        **options,
    )


def saved(folder: Path, model: Any, extra: dict[str, torch.Tensor] | None = None) -> Path:
    """A model as a folder, with further weights."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    if extra:
        file = folder / "model.safetensors"
        weights = load_file(file)
        if not any(name.startswith("model.") for name in weights):
            weights = {f"model.{name}": tensor for name, tensor in weights.items()}
        save_file(weights | extra, file, {"format": "pt"})
    return folder


def scores(name: str, *overrides: str, solutions: Sequence[str] = SOLUTIONS) -> list[Any]:
    settings = load_settings(
        None, model="m", data="d", overrides=["model.dtype=float32", *overrides]
    )
    return make_reward_model(name, settings).scores(QUESTION, solutions)


def steps(solution: str, step: str = "\n\n", *marks: str) -> list[str]:
    controls = ["<extra_0>", "<|turn|>", "<|end|>", "<|pad|>", *marks]
    return [harmless(s, controls) for s in steps_of(solution, step)]


@torch.inference_mode()
def hidden(network: Any, ids: Sequence[int]) -> torch.Tensor:
    """Hidden states of a sequence alone: no batch, no padding."""
    found: torch.Tensor = network(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]
    return found


def close(found: list[Any], expected: list[list[float]]) -> None:
    assert [len(f) for f in found] == [len(e) for e in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    assert len({round(x, 4) for f in found for x in f}) > 4, "the model tells nothing apart"


def test_qwen_prm(tmp_path: Path) -> None:
    network = Qwen2Model(config()).eval()
    torch.manual_seed(4)
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    weights = {f"score.{name}": tensor.detach() for name, tensor in head.named_parameters()}
    folder = saved(tmp_path / "m", network, weights)
    own, expected = tokenizer(), []
    for solution in SOLUTIONS:
        system = r"Please reason step by step, and put your final answer within \boxed{}."
        text = (
            f"<|turn|>system\n{system}<|end|><|turn|>user\nWhat is 7 + 5?<|end|><|turn|>assistant\n"
        )
        values = []
        for step in steps(solution):
            text += f"{step}<extra_0>"
            ids = own.encode(text)
            assert ids[-1] == own.convert_tokens_to_ids("<extra_0>")
            with torch.no_grad():
                values.append(head(hidden(network, ids)[-1]).softmax(0)[1].item())
        expected.append(values)
    close(scores(f"qwen-prm:{folder}", "reward_model.batch_size=2"), expected)


def test_skywork_prm(tmp_path: Path) -> None:
    network = Qwen2Model(config()).eval()
    torch.manual_seed(4)
    head = nn.Linear(32, 1)
    weights = {f"v_head.summary.{n}": tensor.detach() for n, tensor in head.named_parameters()}
    folder = saved(tmp_path / "m", network, weights)
    own, expected = tokenizer(), []
    for solution in SOLUTIONS:
        text, values = "What is 7 + 5?\n", []
        for step in steps(solution, "\n"):
            text += f"{step}\n"
            with torch.no_grad():
                values.append(head(hidden(network, own.encode(text))[-1]).sigmoid().item())
        expected.append(values)
    close(scores(f"skywork-prm:{folder}"), expected)


def against(model: Any, ids: Sequence[int]) -> float:
    """P(+) / (P(+) + P(-)) of the token behind a sequence."""
    with torch.inference_mode():
        chances = model(input_ids=torch.tensor([list(ids)])).logits[0, -1].softmax(0)
    own = tokenizer()
    good, bad = (chances[own.encode(t)[0]].item() for t in "+-")
    return good / (good + bad)


def test_math_shepherd(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()).eval())
    model, own = AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer()
    expected = []
    for solution in SOLUTIONS:
        text, values = "What is 7 + 5? ", []
        for step in steps(solution, "\n", "ки"):
            text += f"{step} ки"
            values.append(against(model, own.encode(text)))
            text += "\n"
        expected.append(values)
    assert "к и" in steps(SOLUTIONS[-1], "\n", "ки")[0]
    close(scores(f"math-shepherd:{folder}"), expected)


def test_rlhflow(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()).eval())
    model, own = AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer()
    expected = []
    for solution in SOLUTIONS:
        text, values = "", []
        for i, step in enumerate(steps(solution)):
            said = f"What is 7 + 5? {step}".strip() if i == 0 else step
            text += f"<|turn|>user\n{said}<|end|><|turn|>assistant\n"
            values.append(against(model, own.encode(text)))
            text += "+<|end|>"
        expected.append(values)
    close(scores(f"rlhflow:{folder}"), expected)


def test_an_outcome_model_scores_the_whole(tmp_path: Path) -> None:
    model = Qwen2ForSequenceClassification(config(num_labels=1, pad_token_id=0)).eval()
    folder = saved(tmp_path / "m", model)
    own, found = tokenizer(), scores(f"orm:{folder}")
    for solution, score in zip(SOLUTIONS, found, strict=True):
        answer = "\n\n".join(steps(solution))
        chat = f"<|turn|>user\nWhat is 7 + 5?<|end|><|turn|>assistant\n{answer}"
        ids = own.encode(chat if answer else f"{chat}<|end|>")
        with torch.no_grad():
            value = model.score(hidden(model.model, ids)[-1]).sigmoid().item()
        assert score == pytest.approx((value,), abs=2e-5)


def test_a_score_does_not_depend_on_what_is_read_beside_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    together = scores(f"rlhflow:{folder}")
    for solution, score in zip(SOLUTIONS, together, strict=True):
        alone = scores(f"rlhflow:{folder}", solutions=[solution])
        assert alone[0] == pytest.approx(score, abs=2e-6)
    assert scores(f"rlhflow:{folder}", solutions=[]) == []


@pytest.mark.parametrize(
    ("how", "value"), [("last", 0.5), ("min", 0.4), ("product", 0.16), ("mean", 17 / 30)]
)
def test_reductions_by_hand(how: Any, value: float) -> None:
    assert reduce((0.8, 0.4, 0.5), how) == pytest.approx(value)


def test_a_step_ends_as_the_settings_say(tmp_path: Path) -> None:
    language = saved(tmp_path / "lm", Qwen2ForCausalLM(config(tie_word_embeddings=True)))
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)}
    skywork = saved(tmp_path / "sw", Qwen2Model(config()), head)
    own = tmp_path / "own.py"
    own.write_text("def mine(prompt, solution):\n    return 0.5\n")
    names = [f"{kind}:{language}" for kind in ("rlhflow", "math-shepherd", "likelihood")]
    for name in (*names, f"skywork-prm:{skywork}", f"{own}:mine"):
        settings = load_settings(
            None, model="m", data="d", overrides=["model.dtype=float32", "reward_model.step=; "]
        )
        model = make_reward_model(name, settings)
        assert model.step == "; "
        if not name.endswith("mine"):
            assert [len(s) for s in model.scores(QUESTION, ["a; b\n\nc; d", "a\nb"])] == [3, 1]


def test_names_that_are_none() -> None:
    with pytest.raises(UserError, match=r"'qwen-pmr:x' is unknown \(did you mean 'qwen-prm'\?\)"):
        scores("qwen-pmr:x")
    for name, message in (
        ("orm:", "expected orm:PATH, a folder or a hub name"),
        ("qwen-prm", "expected qwen-prm:PATH"),
        ("tiny-prm:x", "comes with ttrl: expected 'tiny-prm' alone"),
        ("mine.py", "names no function: expected mine.py:FUNCTION"),
        ("mine.py:", "names nothing in mine.py: expected mine.py:NAME"),
    ):
        with pytest.raises(UserError, match=message):
            scores(name)


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    values = {"model_type": "new", "auto_map": {"AutoModel": "m.New"}, "hidden_size": 1}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "m.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    tokenizer().save_pretrained(folder)
    with pytest.raises(UserError, match=r"which ttrl never runs\. Read that code, wrap it in"):
        scores(f"qwen-prm:{folder}")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot load reward model 'rlhflow:.*safetensors"):
        scores(f"rlhflow:{folder}")


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    with pytest.raises(UserError, match=r"has no weight v_head\.summary\.weight"):
        scores(f"skywork-prm:{folder}")
    with pytest.raises(UserError, match=r"a Qwen2ForSequenceClassification .*for example score"):
        scores(f"orm:{folder}")


def test_what_does_not_fit_is_an_error(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config()))
    with pytest.raises(UserError, match="question 'q' and a solution have 1056 tokens"):
        scores(f"math-shepherd:{folder}", solutions=["x" * 1036])


def test_a_function_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def whole(prompt, solution):\n    return 0.25 if '7' in prompt else 1\n"
        "def steps(prompt, solution):\n    return [0.5, len(solution) / 100]\n"
        "def wrong(prompt, solution):\n    return 2\n"
        "import numpy, torch\n"
        "VALUES = {'a': numpy.float32(0.25), 'b': torch.tensor([0.5, 0.75]), 'c': True,\n"
        "    'd': numpy.array(0.5), 'w': '1', 'x': ['0.5'], 'y': None, 'z': {0.5: 1},\n"
        "    'n': float('nan'), 'o': 10**400, 'p': [], 'q': [[0.5]]}\n"
        "def of(prompt, solution):\n    return VALUES[solution]\n"
    )
    assert scores(f"{file}:of", solutions=list("abcd")) == [(0.25,), (0.5, 0.75), (1.0,), (0.5,)]
    for solution in "wxyznopq":
        with pytest.raises(UserError, match=r"returned .*: expected a number from 0 to 1, or a l"):
            scores(f"{file}:of", solutions=[solution])
    assert scores(f"{file}:whole", solutions=["a", "b"]) == [(0.25,), (0.25,)]
    assert scores(f"{file}:steps", solutions=["abc"]) == [(0.5, 0.03)]
    with pytest.raises(UserError, match="returned '2': expected a number from 0 to 1"):
        scores(f"{file}:wrong", solutions=["a"])


def test_a_likelihood_is_the_product_of_what_was_written(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", Qwen2ForCausalLM(config(tie_word_embeddings=True)))
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"]
    head *= 0.1  # else a token of this random model is nearly certain, or impossible
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model, own = AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer()
    short = ["a", "ab\nc", ""]
    found = scores(f"likelihood:{folder}", solutions=short)
    chat = "<|turn|>user\nWhat is 7 + 5?<|end|><|turn|>assistant\n"
    for solution, score in zip(short, found, strict=True):
        expected = []
        for i in range(len(steps(solution, "\n"))):
            text = "\n".join(steps(solution, "\n")[: i + 1])
            chance = 1.0
            for end in range(len(text)):
                with torch.inference_mode():
                    ids = torch.tensor([own.encode(chat + text[:end])])
                    chances = model(input_ids=ids).logits[0, -1].softmax(0)
                chance *= chances[own.encode(text[end])[0]].item()
            expected.append(chance)
        assert score == pytest.approx(expected, rel=1e-4)
    assert found[2] == (1.0,) and 0 < found[1][1] < found[1][0] < 1


def test_a_template_that_drops_a_mark_is_refused(tmp_path: Path) -> None:
    head = {name: torch.ones(2, 2) for name in QwenPrm.HEAD}
    folder = saved(tmp_path / "m", Qwen2Model(config()), head)
    path = folder / "chat_template.jinja"
    path.write_text("{{ messages[1].content }}{{ messages[2].content.split('</think>')[-1] }}")
    with pytest.raises(UserError, match=r"shows 1 of 2 marks <extra_0>: expected one that repeats"):
        scores(f"qwen-prm:{folder}", solutions=["a\n\nb</think>c"])


def test_a_character_that_the_tokenizer_drops_is_in_the_token_before_it() -> None:
    offsets = [(0, 0), (0, 2), (2, 3), (4, 5)]
    assert [token_at(offsets, place) for place in range(5)] == [1, 1, 2, 2, 3]
    assert token_at([], 0) == 0
