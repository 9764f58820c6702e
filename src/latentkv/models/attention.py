"""The attention layers: Multi-head Latent Attention, and grouped-query attention as its baseline.

Each projects the new tokens, writes their rows into the cache, then attends over the cache: there is no other path,
so prefill, decode, chunks and prefix hits all read what was stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from latentkv.attend import attend_planned, plan_attend, request_for
from latentkv.backends.base import Attended, Plan, Request
from latentkv.backends.native_blocks import GroupedParts, LatentParts
from latentkv.cache.latent import LayerCache
from latentkv.geometry import AttentionGeometry, MLAGeometry
from latentkv.models.config import LATENT_NORM_EPS, ModelConfig
from latentkv.models.step import Step
from latentkv.models.weights import TensorReader
from latentkv.ops.absorb import UpProjection
from latentkv.ops.linear import InputNorm, Projection


def read_projection(
    reader: TensorReader, name: str, shape: tuple[int, int], dtype: torch.dtype, *, bias: bool = False
) -> Projection:
    """`name.weight` [out, in] and, if the architecture has one, `name.bias` [out]."""
    weight = reader.take_matrix(f"{name}.weight", shape, dtype)
    return Projection(weight, reader.take(f"{name}.bias", shape[:1], dtype) if bias else None)


@dataclass(frozen=True)
class MLAttention:
    """Multi-head Latent Attention (DeepSeek-V2, arXiv:2405.04434, equations 9 to 19).

    q_a, q_a_norm: down-projection of the query and its norm, None when the model has no q_lora_rank
    q:         the query projection, from the hidden state or from the normed q latent, to H * (N + Rq)
    kv_a:      hidden state to latent and RoPE key, L + R
    kv_norm:   [L], None where the latent is cached as it is
    up:        W_UK and W_UV
    q_rope_norm, k_rope_norm: [Rq], per-head norms before RoPE, where the model a converted one came from had them
    """

    config: ModelConfig
    geometry: MLAGeometry
    q_a: Projection | None
    q_a_norm: InputNorm | None
    q: Projection
    kv_a: Projection
    kv_norm: Tensor | None
    up: UpProjection
    output: Projection
    q_rope_norm: Tensor | None
    k_rope_norm: Tensor | None

    @staticmethod
    def read(reader: TensorReader, prefix: str, config: ModelConfig, dtype: torch.dtype) -> MLAttention:
        """Take the layer's tensors, named `prefix` + their Hugging Face names."""
        geometry, conventions = config.geometry, config.conventions
        if not isinstance(geometry, MLAGeometry):
            raise TypeError("MLAttention needs an MLAGeometry")
        heads, latent, hidden = geometry.num_attention_heads, geometry.kv_lora_rank, config.hidden_size
        nope, value, rank = geometry.qk_nope_head_dim, geometry.v_head_dim, geometry.q_lora_rank
        query_width = heads * (nope + geometry.query_rope_dim)
        bias = bool(conventions.qkv_bias)
        kv_b = reader.take_float(f"{prefix}kv_b_proj.weight", (heads * (nope + value), latent), dtype)

        def norm(name: str, width: int, *, present: bool) -> Tensor | None:
            return reader.take(f"{prefix}{name}.weight", (width,), dtype) if present else None

        def query() -> Projection:
            if rank is None:
                width, biased = (query_width, hidden), conventions.query_bias
                return read_projection(reader, f"{prefix}q_proj", width, dtype, bias=biased)
            return read_projection(reader, f"{prefix}q_b_proj", (query_width, rank), dtype)

        query_norm = norm("q_a_layernorm", rank or 0, present=rank is not None)
        return MLAttention(
            config=config,
            geometry=geometry,
            q_a=read_projection(reader, f"{prefix}q_a_proj", (rank, hidden), dtype, bias=bias) if rank else None,
            q_a_norm=None if query_norm is None else InputNorm(query_norm, LATENT_NORM_EPS),
            q=query(),
            kv_a=read_projection(
                reader, f"{prefix}kv_a_proj_with_mqa", (geometry.row_elements, hidden), dtype, bias=bias
            ),
            kv_norm=norm("kv_a_layernorm", latent, present=conventions.latent_norm),
            up=UpProjection.from_kv_b_proj(kv_b, num_heads=heads, qk_nope_head_dim=nope),
            output=read_projection(
                reader, f"{prefix}o_proj", (hidden, heads * value), dtype, bias=bool(conventions.output_bias)
            ),
            q_rope_norm=norm("q_norm", geometry.query_rope_dim, present=conventions.qk_norm),
            k_rope_norm=norm("k_norm", geometry.query_rope_dim, present=conventions.qk_norm),
        )

    @property
    def first_query(self) -> Projection:
        """What of the query is computed from the hidden state."""
        return self.q_a or self.q

    @cached_property
    def rotated_up(self) -> UpProjection:
        """`up` for caches whose latents are stored rotated: as large as `up`, made when first needed, and kept."""
        return self.up.rotated()

    def forward(
        self, hidden: Tensor, step: Step, cache: LayerCache, *, norm: InputNorm, factor: float, only: Step | None = None
    ) -> Tensor:
        """`hidden + factor * attention(norm(hidden))`, [T, hidden]; writes the new tokens' rows into the cache.

        only: the step's `last_tokens`, of which alone the result is wanted: [M, hidden]
        """
        kernels = step.execution.kernels
        query, kv = kernels.linear_stack(hidden, (self.first_query, self.kv_a), norm=norm)
        self._write(kv, step, cache)
        if only is not None:
            query, hidden, step = query[only.rows], hidden[only.rows], only
        out = self.attended(query, step, cache).out.flatten(1)
        return kernels.linear_stack(out, (self.output,), residual=hidden, factor=factor)[0]

    def attended(self, query: Tensor, step: Step, cache: LayerCache) -> Attended:
        """What tokens gather from the cache, before the output projection; query [T, ...] is of `first_query`."""
        up = self.rotated_up if cache.layout.rotated else self.up
        return _attend(self._query(query, step), cache, step, scale=self.config.softmax_scale, up=up)

    def block(self, layer: int, *, norm: InputNorm, factor: float, rotated: bool) -> LatentParts:
        """`forward` of layer `layer` as what a native block is made of."""
        return LatentParts(
            layer=layer,
            norm=norm,
            first_query=self.first_query,
            kv=self.kv_a,
            query_norm=self.q_a_norm,
            query=None if self.q_a_norm is None else self.q,
            latent_norm=self.kv_norm,
            latent_eps=LATENT_NORM_EPS,
            key_norm=self.k_rope_norm,
            head_norm=self.q_rope_norm,
            up=self.rotated_up if rotated else self.up,
            rotated=rotated,
            output=self.output,
            rope=self.geometry.qk_rope_head_dim,
            groups=self.geometry.rope_groups,
            interleaved=self.config.rope.interleaved,
            scale=self.config.softmax_scale,
            factor=factor,
        )

    def plan(self, step: Step, cache: LayerCache, dtype: torch.dtype) -> Plan:
        """The step's plan, before there is a query."""
        geometry = self.geometry
        width = geometry.qk_nope_head_dim + geometry.query_rope_dim
        shape = (step.batch.num_tokens, geometry.num_attention_heads, width)
        query = torch.empty(shape, dtype=dtype, device=cache.rows.device)
        return _plan(_request(query, cache, step, up=self.up), step)

    def _write(self, kv: Tensor, step: Step, cache: LayerCache) -> None:
        step.execution.kernels.write_latent(
            cache,
            step.batch.slots,
            kv,
            latent_norm=self.kv_norm,
            latent_eps=LATENT_NORM_EPS,
            rope_norm=self.k_rope_norm,
            rope_eps=self.config.rms_norm_eps,
            angles=step.angles,
            groups=self.geometry.rope_groups,
            interleaved=self.config.rope.interleaved,
        )

    def _query(self, query: Tensor, step: Step) -> Tensor:
        """Queries [T, H, N + Rq], their RoPE part rotated."""
        geometry, kernels = self.geometry, step.execution.kernels
        if self.q_a_norm is not None:
            (query,) = kernels.linear_stack(query, (self.q,), norm=self.q_a_norm)
        width = geometry.qk_nope_head_dim + geometry.query_rope_dim
        return kernels.rotate_query(
            query.view(len(query), geometry.num_attention_heads, width),
            norm=self.q_rope_norm,
            eps=self.config.rms_norm_eps,
            angles=step.angles,
            groups=geometry.rope_groups,
            interleaved=self.config.rope.interleaved,
            nope=geometry.qk_nope_head_dim,
        )


@dataclass(frozen=True)
class GroupedQueryAttention:
    """Grouped-query attention (arXiv:2305.13245) that caches keys and values: the baseline MLA is compared with."""

    config: ModelConfig
    geometry: AttentionGeometry
    q: Projection
    k: Projection
    v: Projection
    output: Projection
    q_norm: Tensor | None
    k_norm: Tensor | None

    @staticmethod
    def read(reader: TensorReader, prefix: str, config: ModelConfig, dtype: torch.dtype) -> GroupedQueryAttention:
        """Take the layer's tensors, named `prefix` + their Hugging Face names."""
        geometry, conventions = config.geometry, config.conventions
        if not isinstance(geometry, AttentionGeometry):
            raise TypeError("GroupedQueryAttention needs an AttentionGeometry")
        heads, groups, hidden = geometry.num_attention_heads, geometry.num_key_value_heads, config.hidden_size
        bias = bool(conventions.qkv_bias)

        def norm(name: str) -> Tensor | None:
            return reader.take(f"{prefix}{name}.weight", (geometry.head_dim,), dtype) if conventions.qk_norm else None

        def project(name: str, width: int) -> Projection:
            return read_projection(reader, prefix + name, (width, hidden), dtype, bias=bias)

        return GroupedQueryAttention(
            config=config,
            geometry=geometry,
            q=project("q_proj", heads * geometry.head_dim),
            k=project("k_proj", groups * geometry.head_dim),
            v=project("v_proj", groups * geometry.v_head_dim),
            output=read_projection(
                reader,
                f"{prefix}o_proj",
                (hidden, heads * geometry.v_head_dim),
                dtype,
                bias=bool(conventions.output_bias),
            ),
            q_norm=norm("q_norm"),
            k_norm=norm("k_norm"),
        )

    @property
    def first_query(self) -> Projection:
        """What of the query is computed from the hidden state."""
        return self.q

    def forward(
        self, hidden: Tensor, step: Step, cache: LayerCache, *, norm: InputNorm, factor: float, only: Step | None = None
    ) -> Tensor:
        """`hidden + factor * attention(norm(hidden))`, [T, hidden]; writes the new tokens' rows into the cache.

        only: the step's `last_tokens`, of which alone the result is wanted: [M, hidden]
        """
        kernels = step.execution.kernels
        query, key, value = kernels.linear_stack(hidden, (self.q, self.k, self.v), norm=norm)
        key = self._rotated(key, self.k_norm, step).flatten(1)
        kernels.write_rows(cache, step.batch.slots, {"key": key, "value": value})
        if only is not None:
            query, hidden, step = query[only.rows], hidden[only.rows], only
        out = self.attended(query, step, cache).out.flatten(1)
        return kernels.linear_stack(out, (self.output,), residual=hidden, factor=factor)[0]

    def attended(self, query: Tensor, step: Step, cache: LayerCache) -> Attended:
        """What tokens gather from the cache, before the output projection; query [T, ...] is of `first_query`."""
        rotated = self._rotated(query, self.q_norm, step)
        return _attend(rotated, cache, step, scale=self.config.softmax_scale, up=None)

    def block(self, layer: int, *, norm: InputNorm, factor: float, rotated: bool) -> GroupedParts | None:
        """`forward` of layer `layer` as what a native block is made of."""
        if rotated:
            return None
        return GroupedParts(
            layer=layer,
            norm=norm,
            query=self.q,
            key=self.k,
            value=self.v,
            query_norm=self.q_norm,
            key_norm=self.k_norm,
            output=self.output,
            width=self.geometry.head_dim,
            value_width=self.geometry.v_head_dim,
            interleaved=self.config.rope.interleaved,
            scale=self.config.softmax_scale,
            factor=factor,
        )

    def plan(self, step: Step, cache: LayerCache, dtype: torch.dtype) -> Plan:
        """The step's plan, before there is a query."""
        shape = (step.batch.num_tokens, self.geometry.num_attention_heads, self.geometry.head_dim)
        query = torch.empty(shape, dtype=dtype, device=cache.rows.device)
        return _plan(_request(query, cache, step, up=None), step)

    def _rotated(self, projected: Tensor, norm: Tensor | None, step: Step) -> Tensor:
        width = self.geometry.head_dim
        return step.execution.kernels.rotate_query(
            projected.view(len(projected), projected.shape[1] // width, width),
            norm=norm,
            eps=self.config.rms_norm_eps,
            angles=step.angles,
            groups=1,
            interleaved=self.config.rope.interleaved,
            nope=0,
        )


def _attend(query: Tensor, cache: LayerCache, step: Step, *, scale: float, up: UpProjection | None) -> Attended:
    request = _request(query, cache, step, up=up)
    if step.watch is not None:
        return step.watch.attend(request, query, cache, scale=scale, up=up)
    return attend_planned(query, cache, step.batch, plan=_plan(request, step), scale=scale, up=up)


def _request(query: Tensor, cache: LayerCache, step: Step, *, up: UpProjection | None) -> Request:
    """The step's request, made for the first query it is asked with."""
    if step.request is None:
        execution = step.execution
        form = execution.form if up is not None else "auto"
        step.request = request_for(
            query,
            cache,
            step.batch,
            up=up,
            form=form,
            deterministic=execution.deterministic,
            integer=execution.integer,
        )
    return step.request


def _plan(request: Request, step: Step) -> Plan:
    """The step's plan, made when it is first asked for."""
    if step.plan is None:
        backend = step.execution.backend if step.watch is None else "auto"
        step.plan = plan_attend(request, step.batch, backend=backend)
    return step.plan
