"""Mixture of experts: which experts a token goes to, and what they compute together.

Three ways of choosing, as released with the models that use them:

    greedy                the k best scores (DeepSeek-V2-Lite)
    group_limited_greedy  the k best within the groups whose best score is highest (DeepSeek-V2, arXiv:2405.04434)
    noaux_tc              the k best biased scores within the groups whose two best sum highest, weights from the scores
                          without bias (DeepSeek-V3, arXiv:2412.19437, section 2.1.2)

Knows no checkpoint: a model hands over weights and a RoutingConfig.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from latentkv.errors import ConfigError, ShapeError, sentence
from latentkv.ops.linear import linear
from latentkv.ops.mlp import swiglu

Scoring = Literal["softmax", "sigmoid"]
Method = Literal["greedy", "group_limited_greedy", "noaux_tc"]

# Keeps the division of normalised weights finite when every chosen score underflowed to zero.
TINY = 1e-20


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """How a router chooses. Names are those of DeepSeek's config.json.

    num_experts_per_tok:   k, experts per token
    n_group, topk_group:   groups of neighbouring experts, and how many of them a token may use; read by the group
                           methods only, and without effect when both are 1
    norm_topk_prob:        divide the k weights by their sum before scaling. DeepseekV2 in transformers never does,
                           whatever its config says: pass False for it
    routed_scaling_factor: multiplies every weight, last
    Raises ConfigError when a field is outside its range.
    """

    num_experts_per_tok: int
    n_group: int = 1
    topk_group: int = 1
    scoring: Scoring = "softmax"
    method: Method = "greedy"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.scoring not in get_args(Scoring):
            raise ConfigError(sentence("scoring", expected=f"one of {get_args(Scoring)}", got=repr(self.scoring)))
        if self.method not in get_args(Method):
            raise ConfigError(sentence("method", expected=f"one of {get_args(Method)}", got=repr(self.method)))
        if self.num_experts_per_tok < 1:
            raise ConfigError(sentence("num_experts_per_tok", expected="1 or more", got=self.num_experts_per_tok))
        if self.n_group < 1:
            raise ConfigError(sentence("n_group", expected="1 or more", got=self.n_group))
        if not 1 <= self.topk_group <= self.n_group:
            raise ConfigError(sentence("topk_group", expected=f"1 to n_group = {self.n_group}", got=self.topk_group))

    @property
    def is_grouped(self) -> bool:
        """Whether groups restrict the choice at all."""
        return self.method != "greedy" and self.topk_group < self.n_group

    def check_experts(self, num_experts: int) -> None:
        """Raise ConfigError unless `num_experts` experts can be grouped and chosen from this way."""
        reachable = num_experts
        if self.is_grouped:
            size, rest = divmod(num_experts, self.n_group)
            # One expert has no second best score for noaux_tc's group score.
            if rest or (self.method == "noaux_tc" and size < 2):
                expected = f"n_group = {self.n_group} equal groups" + (" of 2 or more" if not rest else "")
                raise ConfigError(sentence("number of experts", expected=expected, got=num_experts))
            reachable = self.topk_group * size
        if self.num_experts_per_tok > reachable:
            raise ConfigError(
                sentence(
                    "num_experts_per_tok",
                    expected=f"at most the {reachable} experts a token can reach",
                    got=self.num_experts_per_tok,
                )
            )


@dataclass(frozen=True)
class Routed:
    """Where each token goes.

    experts: [T, k] int64, by falling score; equal scores by rising index
    weights: [T, k] float32, what each expert's output is multiplied with
    """

    experts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """One SwiGLU expert: gate and up [intermediate, hidden], down [hidden, intermediate], any float dtype."""

    gate: Tensor
    up: Tensor
    down: Tensor


def route(hidden: Tensor, weight: Tensor, *, config: RoutingConfig, bias: Tensor | None = None) -> Routed:
    """Choose k of E experts for each token.

    hidden: [T, hidden] any float dtype; logits and scores are float32, since bfloat16 would reorder near-equal experts
    weight: [E, hidden] the router's
    bias:   [E] e_score_correction_bias, for noaux_tc and only for it
    Raises ConfigError when the config does not fit E or the bias, ShapeError for wrong shapes.
    """
    if hidden.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ShapeError(sentence("hidden", expected=f"[T, {weight.shape[1]}]", got=list(hidden.shape)))
    return choose(linear(hidden.float(), weight), config=config, bias=bias)


def choose(logits: Tensor, *, config: RoutingConfig, bias: Tensor | None = None) -> Routed:
    """The second half of `route`: k of E experts for each row of logits [T, E] float32."""
    check_choice(logits, config=config, bias=bias)
    scores = logits.softmax(dim=-1) if config.scoring == "softmax" else logits.sigmoid()
    ranked = scores if bias is None else scores + bias.float()
    if config.is_grouped:
        ranked = _within_best_groups(ranked, config)
    experts = _best(ranked, config.num_experts_per_tok)
    weights = scores.gather(1, experts)
    if config.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + TINY)
    return Routed(experts, weights * config.routed_scaling_factor)


def moe(
    hidden: Tensor,
    routed: Routed,
    experts: Sequence[ExpertWeights],
    *,
    shared: ExpertWeights | None = None,
) -> Tensor:
    """The weighted sum of each token's experts, plus the shared one (arXiv:2405.04434, equation 20).

    hidden:  [T, hidden] float32 | bfloat16, read only
    experts: indexed only at the experts that some token chose, since the others may not be in memory
    shared:  the expert that every token passes; several shared experts side by side are one
    Returns [T, hidden] in hidden's dtype, summed in float32 by rising expert index, the shared one last.
    Raises ShapeError when `routed` is for another number of tokens.
    """
    if routed.experts.shape[0] != hidden.shape[0]:
        raise ShapeError(sentence("routed", expected=f"{hidden.shape[0]} tokens", got=routed.experts.shape[0]))
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    chosen = routed.experts.flatten()
    by_expert = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=len(experts)).tolist()
    first = 0
    for index, count in enumerate(counts):
        if count:
            _add_expert(total, hidden, routed, experts[index], by_expert[first : first + count])
            first += count
    if shared is not None:
        total += swiglu(hidden, shared.gate, shared.up, shared.down)
    return total.to(hidden.dtype)


def _add_expert(total: Tensor, hidden: Tensor, routed: Routed, expert: ExpertWeights, places: Tensor) -> None:
    """Add one expert's share to `total` in place; `places` are its positions in the flattened [T, k] choice."""
    tokens = places // routed.experts.shape[1]
    weights = routed.weights.flatten()[places]
    total.index_add_(0, tokens, swiglu(hidden[tokens], expert.gate, expert.up, expert.down) * weights[:, None])


def check_choice(logits: Tensor, *, config: RoutingConfig, bias: Tensor | None) -> None:
    """Raise what `choose` does unless these fit together."""
    num_experts = logits.shape[-1]
    config.check_experts(num_experts)
    if (bias is not None) != (config.method == "noaux_tc"):
        wanted = "a tensor" if config.method == "noaux_tc" else "none"
        got = "none" if bias is None else "a tensor"
        raise ConfigError(sentence(f"e_score_correction_bias with method {config.method}", expected=wanted, got=got))
    if bias is not None and tuple(bias.shape) != (num_experts,):
        raise ShapeError(sentence("bias", expected=[num_experts], got=list(bias.shape)))


def _within_best_groups(ranked: Tensor, config: RoutingConfig) -> Tensor:
    """The scores [T, E] with -inf at every expert outside the token's best groups."""
    grouped = ranked.view(len(ranked), config.n_group, ranked.shape[1] // config.n_group)
    terms = 2 if config.method == "noaux_tc" else 1
    group_scores = grouped.topk(terms, dim=-1).values.sum(dim=-1)
    dropped = torch.ones_like(group_scores, dtype=torch.bool)
    dropped.scatter_(1, _best(group_scores, config.topk_group), value=False)
    return grouped.masked_fill(dropped[..., None], -torch.inf).flatten(1)


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of each row; a stable sort, since torch.topk breaks ties by chance of layout."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
