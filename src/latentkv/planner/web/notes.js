"use strict";
// What a reader of a plan must be told: latentkv/planner/notes.py, as far as it depends on the reader's choices.

const notes = (() => {
  const comma = sizes.commas;

  function ofParallel(model, parallel) {
    const lines = [];
    const ranks = parallel.tensor / parallel.context;
    if (model.latent && parallel.tensor > parallel.context) {
      lines.push(
        `Tensor parallelism does not split an MLA cache: the latent has no heads, so each of the ${parallel.tensor} ` +
          `ranks keeps all ${model.row_elements} elements of every token it serves. DP-attention splits users, ` +
          "context parallelism splits tokens.",
      );
    } else if (!model.latent && ranks > model.kv_heads) {
      const times = Number((ranks / model.kv_heads).toPrecision(6));
      lines.push(`${ranks} tensor ranks share ${model.kv_heads} KV heads: each head is kept ${times} times.`);
    }
    if (parallel.data > 1) {
      lines.push(
        "DP-attention: each data rank keeps attention's weights whole; experts and all else are split over all " +
          "devices.",
      );
    }
    return lines;
  }

  function ofContext(model, contextTokens, plans) {
    const longest = model.max_context_tokens;
    const fitting = Math.max(0, ...plans.flatMap((plan) => plan.devices.map((way) => way.longest_tokens || 0)));
    if (longest !== null && contextTokens > longest) {
      return [`${comma(contextTokens)} tokens are more than this model's longest context of ${comma(longest)}.`];
    }
    if (longest !== null && fitting > longest) {
      return [`Contexts are shown as far as memory goes; the model's own longest is ${comma(longest)} tokens.`];
    }
    return [];
  }

  function ofEstimates(data, model, deployment) {
    const lines = [];
    const weights = deployment.weights;
    if (planner.weightBytes(model, weights) === null) {
      return [
        `Devices are not planned: bytes of its weights as "${weights}" are not known; state their size, or none.`,
      ];
    }
    if (weights in data.weight_formats) {
      lines.push(
        `Weights are an estimate: all ${comma(model.params_total)} parameters in ${weights} ` +
          `(${data.weight_formats[weights]}).`,
      );
    }
    if (deployment.activationBytes === null) {
      lines.push(
        `Step is an estimate of activations and workspace for ${comma(deployment.stepTokens)} new tokens at once, ` +
          "with what is kept free; a measured figure can be stated.",
      );
      if (model.step.missing.length) {
        lines.push(`Not in the configuration, and so not in that estimate: ${model.step.missing.join(", ")}.`);
      }
    }
    return lines;
  }

  /** Sentences about `model` and its `plans` (one per device), the most surprising first. */
  function on(data, model, question, plans) {
    return [
      ...ofParallel(model, question.deployment.parallel),
      ...model.layer_notes,
      ...ofEstimates(data, model, question.deployment),
      ...ofContext(model, question.contextTokens, plans),
      ...(model.about ? [`About this model: ${model.about}.`] : []),
    ];
  }

  return { on };
})();
