"""A decoder-only model: embedding, layers over the paged cache, logits. Every architecture is this one class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from latentkv.backends.kernels import choose_kernels
from latentkv.backends.native_blocks import BlockParts
from latentkv.cache.batch import Batch
from latentkv.cache.latent import LatentCache, LayerCache
from latentkv.errors import ShapeError, sentence
from latentkv.geometry import Geometry, MLAGeometry
from latentkv.models.attention import GroupedQueryAttention, MLAttention
from latentkv.models.blocks import HalfLayers
from latentkv.models.config import ModelConfig
from latentkv.models.feedforward import DenseFeedForward, MoEFeedForward
from latentkv.models.step import Execution, Step
from latentkv.models.weights import TensorReader, WeightSource
from latentkv.ops.linear import InputNorm, Projection, Weight
from latentkv.ops.quantized import GroupedWeight

# Tensors that checkpoints carry and the model does not need: frequencies are computed, and the layers behind the last
# (multi-token prediction) are not run.
_NOT_NEEDED = (r"rotary_emb\.inv_freq$", r"^mtp\.")


@dataclass(frozen=True)
class DecoderLayer:
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    config: ModelConfig
    input_norm: InputNorm
    attention: MLAttention | GroupedQueryAttention
    post_attention_norm: InputNorm
    feed_forward: DenseFeedForward | MoEFeedForward

    @staticmethod
    def read(reader: TensorReader, index: int, config: ModelConfig, dtype: torch.dtype) -> DecoderLayer:
        """Take layer `index`'s tensors."""
        prefix = f"model.layers.{index}."
        kind = MLAttention if isinstance(config.geometry, MLAGeometry) else GroupedQueryAttention
        feed_forward: DenseFeedForward | MoEFeedForward
        if config.moe is not None and index in config.moe_layers:
            feed_forward = MoEFeedForward.read(reader, f"{prefix}mlp.", config, config.moe, dtype)
        else:
            feed_forward = DenseFeedForward.read(reader, f"{prefix}mlp.", config, dtype)
        first, second = (
            InputNorm(reader.take(f"{prefix}{name}.weight", (config.hidden_size,), dtype), config.rms_norm_eps)
            for name in ("input_layernorm", "post_attention_layernorm")
        )
        return DecoderLayer(
            config=config,
            input_norm=first,
            attention=kind.read(reader, f"{prefix}self_attn.", config, dtype),
            post_attention_norm=second,
            feed_forward=feed_forward,
        )

    def attend(self, hidden: Tensor, step: Step, cache: LayerCache, *, only: Step | None = None) -> Tensor:
        """The first half: [T, hidden] to [T, hidden], or [M, hidden] of `only`; writes all rows into the cache."""
        factor = self.config.residual_scale
        return self.attention.forward(hidden, step, cache, norm=self.input_norm, factor=factor, only=only)

    def feed(self, hidden: Tensor, step: Step) -> Tensor:
        """The second half: [T, hidden] to [T, hidden]."""
        kernels, factor = step.execution.kernels, self.config.residual_scale
        return self.feed_forward.forward(hidden, kernels, norm=self.post_attention_norm, factor=factor)

    def blocks(self, index: int, *, rotated: bool) -> tuple[BlockParts | None, BlockParts | None]:
        """Both halves of layer `index` as what native blocks are made of."""
        factor = self.config.residual_scale
        return (
            self.attention.block(index, norm=self.input_norm, factor=factor, rotated=rotated),
            self.feed_forward.block(norm=self.post_attention_norm, factor=factor),
        )


class Model:
    """A checkpoint that computes. It keeps no state between calls: the cache is an argument.

    dtype: what it computes in; embedding: [vocab, hidden]; final_norm: [hidden]
    head: [vocab, hidden], the embedding itself when tied
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        embedding: Weight,
        layers: tuple[DecoderLayer, ...],
        final_norm: Tensor,
        head: Weight,
        execution: Execution,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.embedding = embedding
        self.layers = layers
        self.final_norm = final_norm
        self.head = Projection(head)
        self.execution = execution
        self.identity = _fingerprint(self)
        # Made when a step first takes them: of the weights, and of nothing that a call leaves behind.
        self._blocks: HalfLayers | None = None

    @staticmethod
    def read(
        source: WeightSource,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        keep_stored: bool = False,
        execution: Execution | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Model:
        """Read every tensor of a checkpoint in `dtype`; `progress` is called with (layers read, layers in all).

        keep_stored: leave matrices in bfloat16, int8 or int4 where that is how they are stored
        Raises CheckpointError naming every missing, unused and misshapen tensor.
        """
        layers = config.geometry.num_hidden_layers
        reader = TensorReader(source, ignorable=ignorable_tensors(config), keep_stored=keep_stored)
        shape = (config.vocab_size, config.hidden_size)
        embedding = reader.take_matrix("model.embed_tokens.weight", shape, dtype)
        read: list[DecoderLayer] = []
        for index in range(layers):
            read.append(DecoderLayer.read(reader, index, config, dtype))
            if progress is not None:
                progress(index + 1, layers)
        final_norm = reader.take("model.norm.weight", (config.hidden_size,), dtype)
        head = embedding if config.tie_word_embeddings else reader.take_matrix("lm_head.weight", shape, dtype)
        reader.finish()
        return Model(
            config,
            dtype=dtype,
            embedding=embedding,
            layers=tuple(read),
            final_norm=final_norm,
            head=head,
            execution=execution or Execution(choose_kernels()),
        )

    @property
    def geometry(self) -> Geometry:
        """The shape of the model's attention."""
        return self.config.geometry

    @property
    def vocab_size(self) -> int:
        """Rows of the logits."""
        return self.config.vocab_size

    @property
    def max_position_embeddings(self) -> int:
        """The longest context the model was made for, in tokens."""
        return self.config.max_position_embeddings

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self.config.eos_token_ids

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.final_norm.device

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, batch: Batch, cache: LatentCache, *, logit_rows: Tensor) -> Tensor:
        """Run the batch's new tokens through the model, writing their rows into the cache.

        token_ids:  [T] int64
        logit_rows: [M] int64, which of the T tokens to return logits for
        Returns [M, vocab] float32.
        """
        if token_ids.shape != batch.positions.shape:
            raise ShapeError(sentence("token_ids", expected=list(batch.positions.shape), got=list(token_ids.shape)))
        step = self.execution.begin(batch, self.config.rope.angles(batch.positions))
        hidden = _scaled(self._embed(token_ids), self.config.embedding_scale)
        (logits,) = self.execution.kernels.linear_stack(
            self._through_layers(hidden, step, cache, logit_rows),
            (self.head,),
            norm=InputNorm(self.final_norm, self.config.rms_norm_eps),
            factor=self.config.logit_scale,
        )
        return logits.float()

    def _through_layers(self, hidden: Tensor, step: Step, cache: LatentCache, logit_rows: Tensor) -> Tensor:
        """Every half-layer: in stretches of native blocks where there are any, one by one where not.

        Returns [M, hidden], of `logit_rows`.
        """
        blocks = self._blocks_for(hidden, step, cache)
        half = 0
        while half < 2 * len(self.layers):
            done = blocks.run(half, hidden, step, cache) if blocks is not None else None
            half += done or 0
            if done is None:
                blocks = None
            if blocks is None and half == 2 * len(self.layers) - 2:
                return self._through_last_layer(hidden, step, cache, logit_rows)
            # No block, or one that did not end well: this half-layer's hidden states are as they were.
            if half < 2 * len(self.layers):
                index, second = divmod(half, 2)
                layer = self.layers[index]
                hidden = layer.feed(hidden, step) if second else layer.attend(hidden, step, cache.layer(index))
                half += 1
        # A decode step wants all rows.
        return hidden if len(hidden) == len(logit_rows) == 1 else hidden[logit_rows]

    def _through_last_layer(self, hidden: Tensor, step: Step, cache: LatentCache, logit_rows: Tensor) -> Tensor:
        """The last layer's output of `logit_rows` [M, hidden]: of all others it computes what the cache keeps."""
        layer, rows = self.layers[-1], cache.layer(len(self.layers) - 1)
        only = step.last_tokens(logit_rows) if len(logit_rows) < len(hidden) else None
        if only is not None:
            return layer.feed(layer.attend(hidden, step, rows, only=only), only)
        return layer.feed(layer.attend(hidden, step, rows)[logit_rows], step)

    def _blocks_for(self, hidden: Tensor, step: Step, cache: LatentCache) -> HalfLayers | None:
        """The blocks that run this step, None where it is computed op by op."""
        kernels, rotated = step.execution.kernels, cache.layout.row.rotated
        if kernels.blocks is None or (step.watch is not None and step.watch.wants_calls):
            return None
        plan = self.layers[0].attention.plan(step, cache.layer(0), hidden.dtype)
        if not kernels.blocks.takes(plan, hidden):
            return None
        if self._blocks is None or not self._blocks.serves(kernels, rotated=rotated):
            parts = [part for index, layer in enumerate(self.layers) for part in layer.blocks(index, rotated=rotated)]
            self._blocks = HalfLayers.make(parts, kernels, kernels.blocks, rotated=rotated)
        return self._blocks

    def _embed(self, token_ids: Tensor) -> Tensor:
        if isinstance(self.embedding, GroupedWeight):
            return self.embedding.rows(token_ids, dtype=self.dtype)
        return functional.embedding(token_ids, self.embedding).to(self.dtype)

    def attention_path(self, cache: LatentCache) -> str:
        """Who computes attention over this cache, for instance "native:avx512": asked with a batch of no tokens."""
        nothing = Batch.build(query_lens=[], context_lens=[], pages=[], page_tokens=cache.layout.page_tokens)
        step = self.execution.begin(nothing, self.config.rope.angles(nothing.positions))
        attention = self.layers[0].attention
        query = torch.empty(0, attention.first_query.out_features, dtype=self.dtype, device=self.device)
        return attention.attended(query, step, cache.layer(0)).path.rstrip(":")

    def tensors(self) -> Iterator[Tensor]:
        """Every weight once, in a fixed order."""
        for weight in self._weights():
            yield from weight.tensors if isinstance(weight, GroupedWeight) else (weight,)

    @property
    def num_parameters(self) -> int:
        """Elements of all weights."""
        return sum(prod(weight.shape) for weight in self._weights())

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def _weights(self) -> Iterator[Weight]:
        seen: set[int] = set()
        for weight in _weights_in((self.embedding, self.layers, self.final_norm, self.head)):
            address = (weight.codes if isinstance(weight, GroupedWeight) else weight).data_ptr()
            if address not in seen or prod(weight.shape) == 0:
                seen.add(address)
                yield weight


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor


def ignorable_tensors(config: ModelConfig) -> tuple[str, ...]:
    """Regular expressions for tensors that a checkpoint may carry and the model does not read."""
    layers = config.geometry.num_hidden_layers
    beyond = rf"^model\.layers\.({'|'.join(str(layers + extra) for extra in range(4))})\."
    # A tied checkpoint may carry a copy of its embedding as the head.
    head = (r"^lm_head\.weight$",) if config.tie_word_embeddings else ()
    return (*_NOT_NEEDED, beyond, *head)


def _weights_in(value: object) -> Iterator[Weight]:
    if isinstance(value, Tensor | GroupedWeight):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _weights_in(item)
    elif hasattr(value, "__dataclass_fields__") and not isinstance(value, ModelConfig):
        for name in value.__dataclass_fields__:
            yield from _weights_in(getattr(value, name))


def _fingerprint(model: Model) -> bytes:
    """A digest of configuration, dtype and a sample of every tensor: cached pages are filed under it."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(dict(model.config.source), sort_keys=True, default=str).encode())
    digest.update(str(model.dtype).encode())
    for tensor in model.tensors():
        flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor[..., :1].reshape(-1)
        # Neighbours, in one place: of experts that lie in a file larger than memory this reads a page each, not all.
        sample = flat[flat.numel() // 2 :][:64].contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.digest()
