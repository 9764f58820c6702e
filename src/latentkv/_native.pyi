"""The native extension (csrc/module.cpp). Arrays are anything with DLPack in CPU memory."""

from typing import Any

# (format, codes, group, bytes of a scale, offset of the scales, offset of the RoPE part)
Codes = tuple[str, int, int, int, int, int]
# Keys and values: the first byte of each, and its codes, whose offsets count from there.
CodedParts = tuple[tuple[int, Codes], tuple[int, Codes]]

class DeclinedError(Exception):
    """The kernel does not take such an array (dtype, device or strides); nothing was written."""

class Isa:
    """One instruction set's kernels. Raises DeclinedError, ShapeError, or IndexError for a slot outside the cache."""

    @property
    def name(self) -> str: ...
    def rms_norm(self, x: Any, weight: Any, eps: float, out: Any) -> None: ...
    def attention(
        self,
        out: Any,
        lse: Any,
        a: Any | None,
        b: Any | None,
        rows: Any,
        page_table: Any,
        plan: tuple[Any, Any, Any, int],
        key: tuple[int, int],
        value: tuple[int, int],
        groups: int,
        b_blocks: int,
        scale: float,
        causal: bool,
        threads: int,
        codes: Codes | None = None,
        parts: CodedParts | None = None,
        integer: bool = True,
    ) -> None: ...
    def head_form(
        self,
        out: Any,
        lse: Any,
        query: Any,
        rows: Any,
        page_table: Any,
        index: int,
        context_len: int,
        w_uk: Any,
        w_uv: Any,
        rope_blocks: int,
        scale: float,
        causal: bool,
        threads: int,
        stretch_bytes: int,
        codes: Codes | None = None,
    ) -> None: ...
    def rotate_query(
        self,
        query: Any,
        *,
        norm: Any | None,
        eps: float,
        angles: tuple[Any, Any],
        groups: int,
        interleaved: bool,
        nope: int,
    ) -> None: ...
    def write_latent(
        self,
        rows: Any,
        slots: Any,
        kv: Any,
        *,
        latent_width: int,
        latent_norm: Any | None,
        latent_eps: float,
        rope_norm: Any | None,
        rope_eps: float,
        angles: tuple[Any, Any],
        groups: int,
        interleaved: bool,
        codes: Codes | None = None,
        rotated: bool = False,
    ) -> None: ...
    def fma_burst(self, rounds: int, threads: int) -> int: ...
    def read_burst(self, array: Any, threads: int) -> float: ...
    def project_rows(self, out: Any, x: Any, w: Any, threads: int) -> None: ...
    def project_columns(self, out: Any, x: Any, w: Any, threads: int) -> None: ...
    def write_rows(self, rows: Any, slots: Any, parts: tuple[Any, ...], codes: CodedParts | None = None) -> None: ...
    def linear(
        self,
        x: Any,
        weights: tuple[Weight, ...],
        outs: tuple[Any, ...],
        residual: Any | None,
        factor: float,
        norm: Any | None,
        eps: float,
        integer: bool,
        narrow: bool,
        threads: int,
    ) -> None: ...
    def linear_gated(
        self,
        x: Any,
        gate: Weight,
        up: Weight,
        out: Any,
        norm: Any | None,
        eps: float,
        integer: bool,
        narrow: bool,
        threads: int,
    ) -> None: ...
    def linear_groups(
        self,
        x: Any,
        counts: tuple[int, ...],
        weights: tuple[Weight, ...],
        gates: tuple[Weight, ...] | None,
        out: Any,
        integer: bool,
        narrow: bool,
        threads: int,
    ) -> None: ...
    def run_blocks(
        self,
        blocks: tuple[Block, ...],
        hidden: Any,
        *,
        storage: Any,
        codes: Codes | None,
        parts: CodedParts | None,
        rotated: bool,
        slots: Any,
        angles: tuple[Any, Any],
        page_table: Any,
        plan: tuple[Any, Any, Any, int],
        projected_tokens: int,
        integer: bool,
        narrow: bool,
        integer_attention: bool,
        threads: int,
    ) -> tuple[int, tuple[float, float, float]]: ...

class Weight:
    """A checked weight [rows, cols] of a linear map; keeps its arrays alive."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

def float_weight(data: Any, bias: Any | None) -> Weight: ...
def grouped_weight(
    codes: Any, scales: Any, minima: Any | None, bias: Any | None, rows: int, cols: int, group: int, zero: int
) -> Weight: ...

class Block:
    """A half-layer, made from checked parts that it keeps alive."""

def latent_block(
    *,
    layer: int,
    norm: Any,
    eps: float,
    first_query: Weight,
    kv: Weight,
    query_norm: Any | None,
    latent_eps: float,
    query: Weight | None,
    latent_norm: Any | None,
    key_norm: Any | None,
    head_norm: Any | None,
    w_uk: Any,
    w_uv: Any,
    output: Weight,
    rope: int,
    groups: int,
    interleaved: bool,
    rotated: bool,
    scale: float,
    factor: float,
) -> Block: ...
def grouped_block(
    *,
    layer: int,
    norm: Any,
    eps: float,
    query: Weight,
    key: Weight,
    value: Weight,
    query_norm: Any | None,
    key_norm: Any | None,
    output: Weight,
    width: int,
    value_width: int,
    interleaved: bool,
    scale: float,
    factor: float,
) -> Block: ...
def gated_block(*, norm: Any, eps: float, gate: Weight, up: Weight, down: Weight, factor: float) -> Block: ...
def routed_block(
    *,
    norm: Any,
    eps: float,
    router: Weight,
    rule: RoutingRule,
    experts: tuple[tuple[Weight, Weight, Weight], ...],
    shared: tuple[Weight, Weight, Weight] | None,
    factor: float,
) -> Block: ...

class RoutingRule:
    """How a router chooses; keeps its bias alive."""

def routing_rule(
    *,
    experts: int,
    chosen: int,
    groups: int,
    best_groups: int,
    group_terms: int,
    sigmoid: bool,
    normalised: bool,
    factor: float,
    bias: Any | None,
) -> RoutingRule: ...
def route(rule: RoutingRule, logits: Any, experts: Any, weights: Any) -> None: ...
def isas() -> tuple[Isa, ...]: ...
def cpu_flags() -> list[str]: ...
