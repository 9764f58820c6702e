"""The short way: load a model, give prompts, get completions. Everything behind it is engine/engine.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from latentkv.cache.layout import DEFAULT_PAGE_TOKENS
from latentkv.cache.tiers.options import DEFAULT_DISK_BYTES
from latentkv.engine.engine import Engine
from latentkv.engine.output import Completion, EngineStats, Output
from latentkv.engine.runner import Model
from latentkv.engine.sampling_params import SamplingParams
from latentkv.engine.speculative import Speculation
from latentkv.engine.text import Tokenizer
from latentkv.errors import OptionError, TokenizerError, sentence

Prompt = str | Sequence[int]


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during `LLM.generate`: `completions` has those that were finished, None for the others."""

    def __init__(self, completions: list[Completion | None]) -> None:
        super().__init__("generation was interrupted")
        self.completions = completions


# Of the options that say how to load: what they are when there is nothing to load.
LOADED_OPTIONS = ("auto", "float", "mla", False, "available")


class LLM:
    """A model ready to generate.

    model:     a folder, a .gguf file, a hub id, None for the default model, or a model object (then with its
               `tokenizer`, if text is wanted)
    dtype:     what weights are held and computed in: "float32", "bfloat16", or "auto" (by the machine's memory)
    activations: what linear layers make of their input, see `latentkv.load_model`
    attention: "mla" runs a GQA checkpoint as the MLA model that computes the same; "gqa" as it is
    deterministic: of attention alone, see `latentkv.attend.attend`
    memory_bytes: what weights may take, see `latentkv.load_model`

    The other options are those of `Engine`. Raises what loading raises (ConfigError, CheckpointError,
    UnsupportedModelError, TokenizerError) and OptionError.
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        dtype: str = "auto",
        activations: Literal["float", "bf16", "auto"] = "float",
        attention: Literal["mla", "gqa"] = "mla",
        deterministic: bool = False,
        memory_bytes: int | Literal["available", "unlimited"] = "available",
        cache_format: str = "bf16",
        page_tokens: int = DEFAULT_PAGE_TOKENS,
        cache_tokens: int | None = None,
        max_batch_tokens: int = 2048,
        max_batch_sequences: int = 64,
        prefix_cache: bool = True,
        host_cache_bytes: int = 0,
        swap_dir: str | Path | None = None,
        swap_bytes: int = DEFAULT_DISK_BYTES,
        cache_dir: str | Path | None = None,
        cache_dir_bytes: int = DEFAULT_DISK_BYTES,
        adapter: str = "",
        speculation: Speculation | None = None,
    ) -> None:
        if model is None or isinstance(model, str | Path):
            from latentkv.models.load import load_model

            loaded = load_model(
                model,
                dtype=dtype,
                activations=activations,
                attention=attention,
                deterministic=deterministic,
                memory_bytes=memory_bytes,
            )
            model, tokenizer = loaded.model, tokenizer if tokenizer is not None else loaded.tokenizer
        elif (dtype, activations, attention, deterministic, memory_bytes) != LOADED_OPTIONS:
            raise OptionError(
                sentence(
                    "dtype, activations, attention, deterministic and memory_bytes",
                    expected=f"{LOADED_OPTIONS} for a model that is loaded already",
                    got=str((dtype, activations, attention, deterministic, memory_bytes)),
                )
            )
        self.engine = Engine(
            model,
            tokenizer,
            cache_format=cache_format,
            page_tokens=page_tokens,
            cache_tokens=cache_tokens,
            max_batch_tokens=max_batch_tokens,
            max_batch_sequences=max_batch_sequences,
            prefix_cache=prefix_cache,
            host_cache_bytes=host_cache_bytes,
            swap_dir=swap_dir,
            swap_bytes=swap_bytes,
            cache_dir=cache_dir,
            cache_dir_bytes=cache_dir_bytes,
            adapter=adapter,
            speculation=speculation,
        )
        self._requests: dict[str, _Request] = {}

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Completion]:
        """Complete prompts (one or many, text or token ids) together; completions in the order of the prompts.

        `params` is one for all or one each. Ctrl-C frees everything and raises GenerationInterrupted (a
        KeyboardInterrupt), which carries the completions that were finished. Raises what `Engine.add_request` raises,
        before anything is computed.
        """
        many = _as_list(prompts)
        requests: list[_Request] = []
        try:
            for prompt, one in zip(many, _params_for(many, params), strict=True):
                requests.append(self._start(prompt, one))
            with _progress_bar(len(many) if progress else None) as report:
                while pending := sum(request.alive for request in requests):
                    self._step()
                    report(len(many) - pending)
        except KeyboardInterrupt:
            self.engine.recover()
            finished = [request.completion() for request in requests]
            raise GenerationInterrupted(finished + [None] * (len(many) - len(finished))) from None
        finally:
            for request in requests:
                self._drop(request)
        return [completion for request in requests if (completion := request.completion()) is not None]

    def chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation, [{"role": "user", "content": …}, …]. Raises TokenizerError without a template."""
        return self.generate(self.chat_prompt(messages), params)[0]

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The token ids of a conversation, up to where the assistant's answer begins; for `generate` and `stream`."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise TokenizerError("chat needs a tokenizer with a chat template, and this model came without one.")
        return tokenizer.encode(tokenizer.render_chat(messages), special_tokens=False)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """The text of one completion, piece by piece as it becomes certain. Closing the iterator frees its pages."""
        return self._pieces(self._start(prompt, params))

    def stats(self) -> EngineStats:
        """Counts since the model was loaded, and the state of the cache now."""
        return self.engine.stats()

    def close(self) -> None:
        """Write to `cache_dir` what waits to be written and let go of its folders, see `Engine.close`."""
        self.engine.close()

    def _pieces(self, request: _Request) -> Iterator[str]:
        shown = 0
        try:
            while request.alive or shown < len(request.outputs):
                if shown == len(request.outputs):
                    self._step()
                for output in request.outputs[shown:]:
                    shown += 1
                    if output.text:
                        yield output.text
        except KeyboardInterrupt:
            self.engine.recover()
            raise
        finally:
            self._drop(request)

    def _start(self, prompt: Prompt, params: SamplingParams | None) -> _Request:
        token_ids = self.engine.encode(prompt)
        request = _Request(self.engine, self.engine.add_request(token_ids, params), token_ids)
        self._requests[request.id] = request
        return request

    def _step(self) -> None:
        """One step of the engine; every output goes to its request, whichever call is waiting for it."""
        for output in self.engine.step():
            request = self._requests.get(output.request_id)
            if request is not None:
                request.outputs.append(output)

    def _drop(self, request: _Request) -> None:
        self.engine.abort(request.id)
        self._requests.pop(request.id, None)


@dataclass(slots=True)
class _Request:
    """A request of this LLM and what came of it so far."""

    engine: Engine
    id: str
    prompt_token_ids: tuple[int, ...]
    outputs: list[Output] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.engine.is_live(self.id)

    def completion(self) -> Completion | None:
        """The whole of it; None unless it is finished."""
        last = self.outputs[-1] if self.outputs else None
        if last is None or last.finish_reason is None or last.timings is None:
            return None
        return Completion(
            prompt_token_ids=self.prompt_token_ids,
            token_ids=tuple(token for output in self.outputs for token in output.token_ids),
            text="".join(output.text for output in self.outputs),
            finish_reason=last.finish_reason,
            logprobs=tuple(logprob for output in self.outputs for logprob in output.logprobs),
            timings=last.timings,
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    one = bool(prompts) and all(isinstance(item, int) for item in prompts)
    return [cast("Prompt", prompts)] if one else list(cast("Sequence[Prompt]", prompts))


def _params_for(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> Sequence[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [params] * len(prompts)
    if len(params) != len(prompts):
        raise OptionError(sentence("params", expected=f"one, or {len(prompts)}: one for each prompt", got=len(params)))
    return params


@contextmanager
def _progress_bar(total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to report finished prompts to; it draws a bar unless `total` is None."""
    if total is None:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("prompts", total=total)
        yield lambda finished: bar.update(task, completed=finished)
