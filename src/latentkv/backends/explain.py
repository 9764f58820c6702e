"""Why a backend can or cannot compute a model's attention here, and which form each length gets. Runs no attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from latentkv.backends.base import Backend, Plan, Request, Support
from latentkv.backends.isa import available_isas, cpu_flags
from latentkv.backends.native import NativeBackend
from latentkv.backends.registry import known_backends
from latentkv.cache.batch import Batch
from latentkv.geometry import Geometry, MLAGeometry

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
# What each instruction set of csrc/dispatch.cpp needs of the CPU, the default first.
ISA_NEEDS = {
    "amx": (*_AVX512, "avx512_vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "avx512vnni": (*_AVX512, "avx512_vnni"),
    "avx512": _AVX512,
    "avx2": _AVX2,
    "baseline": (),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend, or the native one on one instruction set ("native:avx2"), and whether and why not it can run here."""

    name: str
    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What computes one sequence with these lengths, for instance "native:amx:latent"."""

    query_tokens: int
    context_tokens: int
    path: str


def model_request(geometry: Geometry, *, format: str, page_tokens: int, query_dtype: str) -> Request:
    """What every layer of a model with this attention asks of a backend, on the CPU."""
    common = Request(
        kind="kv",
        num_heads=geometry.num_attention_heads,
        format=format,
        page_tokens=page_tokens,
        query_dtype=query_dtype,
        device="cpu",
        form="auto",
        v_head_dim=geometry.v_head_dim,
    )
    if isinstance(geometry, MLAGeometry):
        return replace(
            common,
            kind="mla",
            kv_lora_rank=geometry.kv_lora_rank,
            qk_rope_head_dim=geometry.qk_rope_head_dim,
            qk_nope_head_dim=geometry.qk_nope_head_dim,
            rope_groups=geometry.rope_groups,
        )
    return replace(common, num_key_value_heads=geometry.num_key_value_heads, head_dim=geometry.head_dim)


def candidates(request: Request, *, plugins: Sequence[Backend] = ()) -> list[Candidate]:
    """Every backend in order of preference, the native one followed by its instruction sets."""
    found: list[Candidate] = []
    for backend in known_backends(plugins):
        support = backend.supports(request)
        found.append(Candidate(backend.name, support.ok, support.reason))
        if isinstance(backend, NativeBackend):
            found += [_instruction_set(name, support) for name in ISA_NEEDS]
    return found


def choices(request: Request, lengths: Sequence[tuple[int, int]], *, plugins: Sequence[Backend] = ()) -> list[Choice]:
    """What "auto" takes for one sequence of each (query_tokens, context_tokens); empty when nothing can run it."""
    backend = next((one for one in known_backends(plugins) if one.supports(request).ok), None)
    if backend is None:
        return []
    made: list[Choice] = []
    for query, context in lengths:
        batch = Batch.build(
            query_lens=[query],
            context_lens=[context],
            pages=[list(range(-(-context // request.page_tokens)))],
            page_tokens=request.page_tokens,
        )
        made.append(Choice(query, context, _path(backend.plan(request, batch))))
    return made


def _instruction_set(name: str, native: Support) -> Candidate:
    label = f"native:{name}"
    if not native.ok or name in available_isas():
        return Candidate(label, native.ok, native.reason)
    missing = [flag for flag in ISA_NEEDS[name] if flag not in cpu_flags()]
    why = f"the CPU lacks {', '.join(missing)}" if missing else "not built, or the system does not permit it"
    return Candidate(label, ok=False, reason=why)


def _path(plan: Plan) -> str:
    path = getattr(plan, "path", None)
    return str(path) if path else f"{plan.backend}:{'+'.join(sorted(set(plan.forms)))}"
