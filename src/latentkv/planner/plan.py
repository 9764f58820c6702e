"""The plan: what models cost and what a memory holds, as plain values that tables, JSON, CSV and plots are made of.

from latentkv.planner.catalog import find_model
from latentkv.planner.plan import Question, make_plan

plan = make_plan(find_model("deepseek-ai/DeepSeek-V3"), Question(context_tokens=32768, formats=("bf16", "fp8")))
plan.cache[0].bytes_per_token   # 70272
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from latentkv.errors import OptionError, sentence
from latentkv.geometry import Geometry
from latentkv.planner.footprint import Footprint, footprint
from latentkv.planner.layers import attention_name
from latentkv.planner.memory import Deployment, MemoryNeed, memory_need, most_context, most_users
from latentkv.planner.model import Model
from latentkv.planner.notes import notes_on
from latentkv.planner.parallel import alternatives, device_footprint
from latentkv.planner.twins import GQA_GROUPS, twins
from latentkv.planner.weights import STORED, WEIGHT_FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a model.

    formats:      cache formats to show; the first is the one that devices are planned with
    memory_bytes: of each device, for the reverse questions
    weights:      as in Deployment; None: as stored where files are at hand, else bf16
    deployment:   everything else about serving (its `format` and `weights` are replaced by those here)
    """

    context_tokens: int
    users: int = 1
    formats: tuple[str, ...] = ("bf16",)
    memory_bytes: int | None = None
    weights: str | None = None
    gqa_groups: int = GQA_GROUPS
    deployment: Deployment = field(default_factory=Deployment)

    def __post_init__(self) -> None:
        for name in ("context_tokens", "users", "gqa_groups"):
            if getattr(self, name) < 1:
                raise OptionError(sentence(name, expected="1 or more", got=getattr(self, name)))
        if not self.formats:
            raise OptionError(sentence("formats", expected="at least one cache format", got="none"))


@dataclass(frozen=True, slots=True)
class CacheLine:
    """The cache of one attention in one format. `bytes_per_token_and_layer` is None where layers differ."""

    attention: str
    format: str
    elements_per_token: int
    bytes_per_token_and_layer: int | None
    bytes_per_token: int
    sequence_bytes: int
    ratio_to_own: float


@dataclass(frozen=True, slots=True)
class Serving:
    """One way to serve the model. Cache bytes per token and `need` are those of the fullest device.

    With a memory: `most_tokens` fit in all, in one sequence per data rank; `most_users` have the asked context each;
    `longest_tokens` is for the asked users. The first and last are None, and `unbounded` true, where nothing grows.
    """

    parallel: str
    devices: int
    format: str
    weights: str
    device_bytes_per_token: int
    need: MemoryNeed
    most_tokens: int | None
    most_users: int | None
    longest_tokens: int | None
    unbounded: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All that was asked about one model, and how it is served: the question's deployment with its weights resolved.

    `serving` is empty where the size of the weights is not known and nothing needs it.
    """

    model: Model
    question: Question
    deployment: Deployment
    cache: tuple[CacheLine, ...]
    twins: tuple[CacheLine, ...]
    serving: tuple[Serving, ...]
    notes: tuple[str, ...]


def make_plan(model: Model, question: Question) -> Plan:
    """Answer `question` for `model`.

    Raises OptionError for an unknown format or a size that makes no sense, ConfigError when a memory is given and the
    size of the weights is not known.
    """
    weights = question.weights or (STORED if model.weights_bytes is not None else "bf16")
    deployment = replace(question.deployment, weights=weights, format=question.formats[0])
    known = model.params_total is not None or weights not in WEIGHT_FORMATS
    asked = question.weights is not None or question.memory_bytes is not None
    serving = _servings(model, question, deployment) if known or asked else ()
    fitting = max((each.longest_tokens or 0 for each in serving), default=0)
    return Plan(
        model=model,
        question=question,
        deployment=deployment,
        cache=tuple(_own_line(model, format, question) for format in question.formats),
        twins=_twin_lines(model, question),
        serving=serving,
        notes=notes_on(
            model,
            deployment,
            context_tokens=question.context_tokens,
            served=bool(serving),
            longest_fitting=fitting,
        ),
    )


def own_footprint(model: Model, format: str, question: Question) -> Footprint:
    """The model's cache in `format`, in the question's pages."""
    return footprint(model.layers, format=format, page_tokens=question.deployment.page_tokens)


def _own_line(model: Model, format: str, question: Question) -> CacheLine:
    cache = own_footprint(model, format, question)
    first = own_footprint(model, question.formats[0], question)
    rows = {group.row_bytes for group in cache.groups if group.layout is not None}
    name = " / ".join(dict.fromkeys(group.layers.name for group in cache.groups))
    return _line(name, cache, rows.pop() if len(rows) == 1 else None, question, first.bytes_per_token)


def _twin_lines(model: Model, question: Question) -> tuple[CacheLine, ...]:
    """MHA, GQA and MQA of the same heads; only for models whose layers are all alike."""
    if not model.uniform:
        return ()
    format = question.formats[0]
    own = own_footprint(model, format, question).bytes_per_token
    return tuple(
        _twin_line(model, twin, format, question, own) for twin in twins(model.geometry, groups=question.gqa_groups)
    )


def _twin_line(model: Model, twin: Geometry, format: str, question: Question, own: int) -> CacheLine:
    cache = own_footprint(replace(model, layers=(replace(model.layers[0], geometry=twin),)), format, question)
    return _line(attention_name(twin), cache, cache.groups[0].row_bytes, question, own)


def _line(name: str, cache: Footprint, row_bytes: int | None, question: Question, own_bytes: int) -> CacheLine:
    return CacheLine(
        attention=name,
        format=cache.format,
        elements_per_token=cache.elements_per_token,
        bytes_per_token_and_layer=row_bytes,
        bytes_per_token=cache.bytes_per_token,
        sequence_bytes=cache.sequence_bytes(question.context_tokens),
        ratio_to_own=cache.bytes_per_token / own_bytes,
    )


def _servings(model: Model, question: Question, base: Deployment) -> tuple[Serving, ...]:
    """The way that was asked for in every format; on several devices then the other ways to use them."""
    asked = [_serving(model, replace(base, format=format), question) for format in question.formats]
    others = alternatives(base.parallel)[1:] if base.parallel.devices > base.parallel.pipeline else ()
    return (*asked, *(_serving(model, replace(base, parallel=way), question) for way in others))


def _serving(model: Model, deployment: Deployment, question: Question) -> Serving:
    users, tokens, memory = question.users, question.context_tokens, question.memory_bytes
    parallel = deployment.parallel
    cache = device_footprint(model, parallel, format=deployment.format, page_tokens=deployment.page_tokens)
    fitting, longest, whole = None, None, None
    if memory is not None:
        whole = most_context(model, deployment, memory_bytes=memory, users=parallel.data)
        fitting = most_users(model, deployment, memory_bytes=memory, context_tokens=tokens)
        longest = most_context(model, deployment, memory_bytes=memory, users=users)
    return Serving(
        parallel=parallel.name,
        devices=parallel.devices,
        format=deployment.format,
        weights=deployment.weights,
        device_bytes_per_token=-(-cache.bytes_per_token // parallel.context),
        need=memory_need(model, deployment, users=users, context_tokens=tokens),
        most_tokens=whole * parallel.data if whole is not None else None,
        most_users=fitting,
        longest_tokens=longest,
        unbounded=memory is not None and longest is None,
    )
