"""The vLLM rollout engine: a vLLM inside this process, on its GPU or a CPU.

As with the other engine: stop tokens, finish reasons, and log-probs of the distribution that was
sampled from. Every sample has its own seed, derived from (stream, question, sample index), so the
same run on the same machine samples the same. Other questions beside it can change a sample through
rounding alone, but on a GPU in bfloat16 rounding does change tokens; and the samples are not those
that the transformers engine draws.
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ttrl.models.pretrained import Room, context_room, load_model, load_outline, model_path
from ttrl.rollout.ends import refuse_overflow, stop_ids
from ttrl.rollout.engines.vllm_contract import broken_contract, require_vllm
from ttrl.rollout.engines.vllm_likeliest import TIES, likeliest
from ttrl.rollout.engines.vllm_watch import sample_watched
from ttrl.rollout.engines.weights import complete
from ttrl.rollout.sampling import SamplingParams
from ttrl.settings import Settings
from ttrl.system.gpus import device
from ttrl.system.memory import memory_suffices
from ttrl.system.ranks import Ranks
from ttrl.system.rng import generator
from ttrl.types import Completion, FinishReason, Question, UserError
from ttrl.types.top_logprobs import TopLogprobs

MOST_NOTED = 256
"""The likeliest tokens of a place that may be asked for."""


class VllmEngine:
    """Samples completions; see `ttrl.rollout.engines.base.Engine` for the protocol."""

    def __init__(
        self,
        settings: Settings,
        tokenizer: PreTrainedTokenizerBase,
        ranks: Ranks,
        *,
        load_weights: bool,
    ) -> None:
        """Start vLLM.

        Args:
            settings: the model, and how much of it to keep in memory.
            tokenizer: turns tokens into text; vLLM gets none.
            ranks: where there are several, each has an engine, or shares one with its neighbours
                (``rollout.tensor_parallel``).
            load_weights: False where a push comes before anything is sampled.

        Raises:
            UserError: if vLLM is missing, of the wrong version, or cannot run this model.
        """
        version = require_vllm()
        outline = load_outline(settings.model)
        self.tokenizer = tokenizer
        self.steps = 0
        self.stop_ids = stop_ids(outline, tokenizer)
        self._reads_text = bool(settings.rollout.stop)
        self._room = context_room(outline)
        self._shapes = {name: p.shape for name, p in outline.named_parameters()}
        self._tied = {} if torch.cuda.is_available() else _tied_names(outline)
        self._vocabulary: int = outline.config.get_text_config().vocab_size
        self._dtype = getattr(torch, settings.model.dtype)
        self._set_up_environment(settings)
        with _torch_restored():
            self._llm = _start(settings, self._room, version, ranks)
        self._requests = itertools.count()
        self._asleep = False
        self._filled = True
        self._try_out(version)
        self.sleep()  # what it takes is the trainer's until a push
        if load_weights:
            self.load_weights(load_model(settings.model, self._dtype).named_parameters())

    def _try_out(self, version: str) -> None:
        """Sample one token: vLLM cannot always compute what it loads."""
        try:
            list(self.sample([Question("first", "", (0,))], SamplingParams(1, 1.0, 1)))
        except RuntimeError as error:
            raise UserError(
                f"vLLM {version} cannot compute this model here: {_first_line(error)}; "
                'set rollout.engine = "transformers"'
            ) from error

    @staticmethod
    def _set_up_environment(settings: Settings) -> None:
        """Set what vLLM reads from the environment, which must be there before the import."""
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are pushed inside this process
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": str(settings.rollout.kv_cache_gb),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it warns at every push

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, while the engine sleeps; then wake it whole.

        Of the largest matrix there are three copies for a moment: whole out of its shares, ours,
        and the one that vLLM makes of them. There is room for those only without the KV cache.

        Raises:
            UserError: if the GPU has not so much memory.
            RuntimeError: if the set is not complete, see `ttrl.rollout.engines.weights`; the engine
                then samples nothing until a complete set has come.
        """
        self.sleep()
        remedy = (
            "lower rollout.gpu_memory_share or, under zero3, set "
            "memory.offload_during_rollout = true"
        )
        with memory_suffices("while vLLM woke up its weights", remedy):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what the trainer has freed, but torch has kept
            self._llm.wake_up(tags=["weights"])
        self._asleep = False
        with memory_suffices("during a push of weights into vLLM", remedy), _torch_restored():
            self._llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": self._own_copies(weights)}
            )
        with memory_suffices("while vLLM woke up its kv_cache", remedy):
            self._llm.wake_up(tags=["kv_cache"])
        # It holds keys and values that the old weights computed, and a reload leaves it as it is.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("weight push: vLLM kept its prefix cache, which is of old weights")
        self._filled = True

    def _own_copies(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each tensor in fresh storage.

        vLLM keeps those of a layer until the layer is whole, and a source that reuses its buffer
        would overwrite them. From the host's memory, where those of another process lie, a tensor
        goes straight to the GPU.
        """
        for name, tensor in complete(weights, self._shapes):
            for known in filter(None, (name, self._tied.get(name))):
                yield known, tensor.detach().to(device(), self._dtype, copy=True)

    def sleep(self) -> None:
        """Give a GPU's memory back, weights included; the next push wakes the engine."""
        if not self._asleep:
            self._filled = False
            self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """End vLLM, and with it all groups of processes that this one is in."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm  # whoever keeps this engine keeps neither weights nor KV cache
        gc.collect()

    def sample(
        self, questions: Sequence[Question], params: SamplingParams
    ) -> Iterator[tuple[int, tuple[Completion, ...]]]:
        """Yield (index of the question, its n completions), each as soon as it is complete.

        Raises:
            UserError: if a prompt leaves no room for ``max_new_tokens`` in the model's context, or
                for stop strings where ``rollout.stop`` has none.
            RuntimeError: if the engine has no weights: it sleeps, or was never pushed any.
        """
        if not self._filled:
            raise RuntimeError("the vLLM engine holds no weights: push some first")
        if params.stop and not self._reads_text:
            raise UserError(
                f"vLLM was asked to stop at {list(params.stop)} and reads no text here: name these "
                "strings, or others, in rollout.stop"
            )
        refuse_overflow(questions, params, self._room)
        abort = self._llm.llm_engine.abort_request
        if params.floor is not None:
            yield from sample_watched(
                self._add, self._step, abort, self._completions, questions, params
            )
            return
        waiting: dict[str, int] = {}
        try:
            for i, question in enumerate(questions):
                # One request for all samples, so that the prompt is computed once.
                waiting[self._add(question, params)] = i
            while waiting:
                for output in self._step():
                    if output.finished:
                        yield (
                            waiting.pop(output.request_id),
                            self._completions(output.outputs, params),
                        )
        finally:  # whoever stops listening leaves nothing behind
            abort(list(waiting))

    def _add(self, question: Question, params: SamplingParams) -> str:
        """Ask for a question's samples; return the name of the request."""
        request = f"ttrl-{next(self._requests)}"
        prompt = {"prompt_token_ids": list(question.prompt_ids)}
        asked = self._request_params(question, params)
        self._llm.llm_engine.add_request(request, prompt, asked)
        return request

    def _step(self) -> Sequence[Any]:
        """Decode a token of every request; return what vLLM has to say."""
        with _torch_restored():
            outputs: Sequence[Any] = self._llm.llm_engine.step()
        self.steps += 1
        return outputs

    def _request_params(self, question: Question, params: SamplingParams) -> Any:
        from vllm import SamplingParams as VllmParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY
        if params.floor is not None:
            kind = RequestOutputKind.CUMULATIVE
        # vLLM gives sample i the seed + i, so it is the same in whatever round it is asked for.
        seed = int(generator(*params.stream, question.id).integers(2**62)) + params.first
        return VllmParams(
            n=params.n if params.temperature > 0 else 1,  # it refuses to write the same again
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            max_tokens=params.max_new_tokens,
            stop_token_ids=sorted(self.stop_ids),
            seed=seed,
            # Of the sampled token, and of as many others as are to be noted.
            logprobs=min(params.noted + (TIES if params.top_k else 0), self._vocabulary),
            flat_logprobs=True,
            stop=list(params.stop),
            include_stop_str_in_output=True,
            detokenize=bool(params.stop),
            output_kind=kind,
        )

    def _completions(
        self, outputs: Sequence[Any], params: SamplingParams
    ) -> tuple[Completion, ...]:
        texts = self.tokenizer.batch_decode(
            [list(o.token_ids) for o in outputs], skip_special_tokens=True
        )
        copies = 1 if params.temperature > 0 else params.n
        return copies * tuple(
            self._completion(o, text, params) for o, text in zip(outputs, texts, strict=True)
        )

    def _completion(self, output: Any, text: str, params: SamplingParams) -> Completion:
        tokens, found = tuple(output.token_ids), output.logprobs
        # The sampled token comes first in each place.
        logprobs = tuple(found.logprobs[start] for start in found.start_indices)
        if not tokens or len(logprobs) != len(tokens):
            raise RuntimeError(f"vLLM gave {len(logprobs)} log-probs of {len(tokens)} tokens")
        ended = tokens[-1] in self.stop_ids
        # Whether a stop string has come is vLLM's to say: it has decoded token by token.
        if (output.finish_reason == "stop") != ended and not params.stop:
            raise RuntimeError(
                f"vLLM ended a completion with {output.finish_reason!r}, the last token of which "
                f"is {'a' if ended else 'no'} stop token"
            )
        reason = FinishReason(output.finish_reason)
        top = likeliest(found, params) if params.noted else None
        if params.temperature == 0:  # vLLM's are then those of temperature 1, of all tokens
            logprobs = (0.0,) * len(tokens)
            top = top and TopLogprobs.of((((t,), (0.0,)) for t in tokens), whole=top.whole)
        return Completion(tokens, logprobs, text, reason, top_logprobs=top)


def _tied_names(outline: PreTrainedModel) -> dict[str, str]:
    """Map the name of a weight that is also used elsewhere to the name that it has there."""
    first: dict[int, str] = {}
    every = outline.named_parameters(remove_duplicate=False)
    names = ((first.setdefault(id(p), name), name) for name, p in every)
    return {one: other for one, other in names if one != other}


def _start(settings: Settings, room: Room | None, version: str, ranks: Ranks) -> Any:
    """Start vLLM with meaningless weights: so a push that forgets some cannot go unnoticed."""
    try:
        from vllm import LLM
    except Exception as error:  # compiled code for another torch fails in many ways
        raise UserError(
            f"vLLM {version} is installed but does not load: {_first_line(error)}"
        ) from error
    if lost := broken_contract():
        raise UserError(f"vLLM {version} lacks what is used of it here: {'; '.join(lost)}")
    rollout = settings.rollout
    length = settings.longest
    if room is not None:  # a longer one would give longrope other factors, whatever is sampled
        length = min(length, room.tokens)
    options: dict[str, Any] = (
        {"enable_sleep_mode": True, "gpu_memory_utilization": rollout.gpu_memory_share}
        if torch.cuda.is_available()
        else {
            "enforce_eager": True,
            "block_size": 32,  # by default they are so long that short prompts share none
            # A tied output layer is packed once and for all, and would miss every push.
            "hf_overrides": {"tie_word_embeddings": False},
            # A prompt that is computed in parts would rewind its samples' random numbers, which
            # generators on a CPU cannot.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(8192, length),
        }
    )
    if ranks.count > 1:
        # Inside this process, with the groups of the launcher: consecutive ranks share an engine.
        options["distributed_executor_backend"] = "external_launcher"
        options["tensor_parallel_size"] = rollout.tensor_parallel
    try:
        return LLM(
            model=model_path(settings.model),
            revision=settings.model.revision,
            dtype=settings.model.dtype,
            seed=settings.seed,
            skip_tokenizer_init=not rollout.stop,  # without them it need not read text
            generation_config="vllm",  # not the model's own defaults: all of sampling is ours
            load_format="dummy",
            logprobs_mode="processed_logprobs",
            max_logprobs=MOST_NOTED,
            enable_prefix_caching=True,
            max_model_len=length,
            max_num_seqs=rollout.batch_size,
            **options,
        )
    except (ValueError, torch.OutOfMemoryError) as error:
        raise UserError(
            f"vLLM {version} cannot start with model.path = {settings.model.path!r}: "
            f"{_first_line(error)} (its memory: rollout.gpu_memory_share = "
            f"{rollout.gpu_memory_share} on a GPU, rollout.kv_cache_gb = {rollout.kv_cache_gb} on "
            "a CPU)"
        ) from error


@contextmanager
def _torch_restored() -> Iterator[None]:
    """Let vLLM run, and undo what it does to torch and the environment.

    It sets the number of threads, which our runs depend on, and on a CPU replaces the function
    that could set it back; it preloads libraries into later processes; its kernels are not made for
    torch's deterministic mode. Left alone: torch's generator, which its sampler on a CPU uses.
    """
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    preload = os.environ.get("LD_PRELOAD")
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
