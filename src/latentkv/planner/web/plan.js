"use strict";
// The sums of latentkv.planner that depend on the reader's choices: footprint.py, parallel.py, activations.py,
// memory.py, plan.py and curves.py, under their names. Bytes of rows and of weights are data. Whole numbers below
// 2^53 are exact; a search may try larger ones, which only have to be larger than any memory.
// A test compares all of it with the Python code, to the byte.

const planner = (() => {
  const ceilDivide = (number, by) => (number - (number % by)) / by + (number % by ? 1 : 0);
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  /** As Python's round: a half goes to the even neighbour. */
  function roundHalfEven(value) {
    const below = Math.floor(value);
    if (value - below !== 0.5) return Math.round(value);
    return below % 2 ? below + 1 : below;
  }

  function rowBytes(data, group, format) {
    const index = data.formats.indexOf(format);
    const row = group.row === null ? 0 : rowOf(data, group).bytes[index];
    return row + (group.index_elements ? data.index_rows[group.index_elements][index] : 0);
  }

  function rowOf(data, group) {
    return data.rows[group.kv_heads === null ? group.row : `${group.kv_heads} ${group.row}`];
  }

  function rowElements(data, group) {
    return (group.row === null ? 0 : rowOf(data, group).elements) + group.index_elements;
  }

  /** Pages of a sequence in each layer; a window touches up to ceil((W - 1) / P) + 1 pages. */
  function pages(group, pageTokens, contextTokens) {
    if (group.row === null) return 0;
    const all = ceilDivide(contextTokens, pageTokens);
    return group.window_tokens === null ? all : Math.min(all, ceilDivide(group.window_tokens - 1, pageTokens) + 1);
  }

  /** Bytes of one sequence; its pages are dealt out to `contextRanks`. */
  function sequenceBytes(data, groups, format, pageTokens, contextTokens, contextRanks = 1) {
    return sum(
      groups.map((group) => {
        const own = ceilDivide(pages(group, pageTokens, contextTokens), contextRanks);
        const bytes = group.row === null ? 0 : own * pageTokens * rowBytes(data, group, format);
        return group.count * (bytes + (group.state_bytes || 0));
      }),
    );
  }

  const bytesPerToken = (data, groups, format) =>
    sum(groups.map((group) => group.count * rowBytes(data, group, format)));

  const elementsPerToken = (data, groups) => sum(groups.map((group) => group.count * rowElements(data, group)));

  const devices = (parallel) => parallel.tensor * parallel.pipeline * parallel.data;

  function parallelName(parallel) {
    const sizes = [
      ["TP", parallel.tensor],
      ["PP", parallel.pipeline],
      ["DP-attention", parallel.data],
      ["CP", parallel.context],
    ];
    const named = sizes.filter(([, size]) => size > 1).map(([name, size]) => `${name} ${size}`);
    return named.join(", ") || "one device";
  }

  /** The layers of the fullest device: a latent has no heads that could be split. */
  function deviceGroups(model, parallel) {
    const headRanks = parallel.tensor / parallel.context;
    return model.layers.map((group) => ({
      ...group,
      count: ceilDivide(group.count, parallel.pipeline),
      kv_heads: group.kv_heads === null ? null : ceilDivide(group.kv_heads, headRanks),
      state_bytes: group.state_bytes === null ? null : ceilDivide(group.state_bytes, parallel.tensor),
    }));
  }

  function alternatives(parallel) {
    const width = parallel.tensor * parallel.data;
    const pipeline = parallel.pipeline;
    const ways = [
      parallel,
      { tensor: width, pipeline, data: 1, context: 1 },
      { tensor: 1, pipeline, data: width, context: 1 },
      { tensor: width, pipeline, data: 1, context: width },
    ];
    const names = ways.map((way) => JSON.stringify([way.tensor, way.pipeline, way.data, way.context]));
    return ways.filter((way, index) => names.indexOf(names[index]) === index);
  }

  /** Bytes of all weights: a number as it is, null where they are not known. */
  function weightBytes(model, weights) {
    if (typeof weights === "number") return weights;
    if (weights === "none") return 0;
    return weights in model.weights ? model.weights[weights] : null;
  }

  function deviceWeightBytes(model, deployment) {
    const parallel = deployment.parallel;
    const total = weightBytes(model, deployment.weights);
    const attention = parallel.data > 1 ? roundHalfEven(total * model.attention_share) : 0;
    return ceilDivide(attention * parallel.data + total - attention, devices(parallel));
  }

  function stepNeed(data, model, { stepTokens, users, contextTokens, tensor }) {
    const [sizes, constants] = [model.step, data.constants];
    const heads = ceilDivide(sizes.heads, tensor);
    const row = sizes.row_splits ? ceilDivide(sizes.row_elements, tensor) : sizes.row_elements;
    const residual = 3 * stepTokens * sizes.hidden;
    const attention = stepTokens * (heads * sizes.head_elements + row);
    const feedforward = 2 * stepTokens * ceilDivide(sizes.feedforward, tensor);
    const logits = constants.float32_bytes * users * ceilDivide(sizes.vocabulary, tensor);
    const expanded = Math.min(contextTokens, constants.expanded_tokens) * heads * sizes.expanded_elements;
    const partial = constants.decode_splits * users * heads * sizes.partial_elements;
    return {
      activations: constants.activation_bytes * (residual + Math.max(attention, feedforward)) + logits,
      workspace: constants.activation_bytes * expanded + constants.float32_bytes * partial,
    };
  }

  /** What the fullest device holds, as a function of users and context. */
  function forward(data, model, deployment) {
    const parallel = deployment.parallel;
    const groups = deviceGroups(model, parallel);
    const weights = deviceWeightBytes(model, deployment);
    return (users, contextTokens) => {
      const ownUsers = ceilDivide(users, parallel.data);
      const step = stepNeed(data, model, {
        stepTokens: deployment.stepTokens,
        users: ownUsers,
        contextTokens,
        tensor: parallel.tensor,
      });
      const stated = deployment.activationBytes;
      const { format, pageTokens } = deployment;
      const one = sequenceBytes(data, groups, format, pageTokens, contextTokens, parallel.context);
      const need = {
        weights_bytes: weights,
        activations_bytes: stated === null ? step.activations : stated,
        workspace_bytes: stated === null ? step.workspace : 0,
        reserve_bytes: deployment.reserveBytes,
        cache_bytes: ownUsers * one,
      };
      return { ...need, total_bytes: sum(Object.values(need)) };
    };
  }

  /** The largest number that fits, 0 when none; `unbounded` when nothing grows. */
  function largest(fits, unbounded) {
    if (!fits(1)) return 0;
    let [good, bad] = [1, 2];
    while (fits(bad)) {
      if (bad >= unbounded) return unbounded;
      [good, bad] = [bad, bad * 2];
    }
    while (bad - good > 1) {
      const middle = Math.floor((good + bad) / 2);
      if (fits(middle)) good = middle;
      else bad = middle;
    }
    return good;
  }

  function mostUsers(data, model, deployment, memoryBytes, contextTokens) {
    const need = forward(data, model, deployment);
    return largest((users) => need(users, contextTokens).total_bytes <= memoryBytes, data.constants.unbounded);
  }

  /** The longest context of so many users; null when any fits. */
  function mostContext(data, model, deployment, memoryBytes, users) {
    const need = forward(data, model, deployment);
    const most = largest((tokens) => need(users, tokens).total_bytes <= memoryBytes, data.constants.unbounded);
    return most >= data.constants.unbounded ? null : most;
  }

  function cacheLine(data, attention, groups, format, question, ownBytes) {
    const rows = new Set(groups.filter((group) => group.row !== null).map((group) => rowBytes(data, group, format)));
    const perToken = bytesPerToken(data, groups, format);
    return {
      attention,
      format,
      elements_per_token: elementsPerToken(data, groups),
      bytes_per_token_and_layer: rows.size === 1 ? [...rows][0] : null,
      bytes_per_token: perToken,
      sequence_bytes: sequenceBytes(data, groups, format, question.deployment.pageTokens, question.contextTokens),
      ratio_to_own: perToken / ownBytes,
    };
  }

  function serving(data, model, deployment, question) {
    const { memoryBytes, users, contextTokens } = question;
    const parallel = deployment.parallel;
    const asked = memoryBytes !== null;
    const perToken = bytesPerToken(data, deviceGroups(model, parallel), deployment.format);
    const whole = asked ? mostContext(data, model, deployment, memoryBytes, parallel.data) : null;
    const longest = asked ? mostContext(data, model, deployment, memoryBytes, users) : null;
    return {
      parallel: parallelName(parallel),
      devices: devices(parallel),
      format: deployment.format,
      weights: deployment.weights,
      device_bytes_per_token: ceilDivide(perToken, parallel.context),
      need: forward(data, model, deployment)(users, contextTokens),
      most_tokens: whole === null ? null : whole * parallel.data,
      most_users: asked ? mostUsers(data, model, deployment, memoryBytes, contextTokens) : null,
      longest_tokens: longest,
      unbounded: asked && longest === null,
    };
  }

  /** The asked way to serve in every format, then other ways to use as many devices; none without weights. */
  function servings(data, model, question) {
    const base = { ...question.deployment, format: question.formats[0] };
    if (weightBytes(model, base.weights) === null) return [];
    const parallel = base.parallel;
    const others = devices(parallel) > parallel.pipeline ? alternatives(parallel).slice(1) : [];
    return [
      ...question.formats.map((format) => serving(data, model, { ...base, format }, question)),
      ...others.map((way) => serving(data, model, { ...base, parallel: way }, question)),
    ];
  }

  /** The answers of latentkv.planner.plan.make_plan, under the names that `latentkv plan --json` gives them. */
  function makePlan(data, model, question) {
    const own = bytesPerToken(data, model.layers, question.formats[0]);
    const name = [...new Set(model.layers.map((group) => group.attention))].join(" / ");
    return {
      model: model.name,
      source: model.source,
      params_total: model.params_total,
      params_active: model.params_active,
      max_context_tokens: model.max_context_tokens,
      context_tokens: question.contextTokens,
      users: question.users,
      page_tokens: question.deployment.pageTokens,
      memory_bytes: question.memoryBytes,
      cache: question.formats.map((format) => cacheLine(data, name, model.layers, format, question, own)),
      twins: model.twins.map((twin) => cacheLine(data, twin.attention, [twin], question.formats[0], question, own)),
      devices: servings(data, model, question),
    };
  }

  /** Contexts evenly spaced on a logarithmic axis. */
  function contextsUpTo(data, longest) {
    const contexts = [];
    const shortest = Math.min(data.constants.shortest_tokens, longest);
    for (let index = 0; index < 200; index++) {
      const tokens = roundHalfEven(shortest * 2 ** (index / data.constants.points_per_doubling));
      if (tokens >= longest) break;
      contexts.push(tokens);
    }
    return [...contexts, longest];
  }

  const cacheCurve = (data, groups, format, pageTokens, contexts) =>
    contexts.map((tokens) => sequenceBytes(data, groups, format, pageTokens, tokens));

  const usersCurve = (data, model, deployment, memoryBytes, contexts) =>
    contexts.map((tokens) => mostUsers(data, model, deployment, memoryBytes, tokens));

  return { makePlan, contextsUpTo, cacheCurve, usersCurve, weightBytes, roundHalfEven };
})();
