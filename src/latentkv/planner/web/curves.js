"use strict";
// Which lines the plots show and how they look: latentkv/planner/curves.py and the look of cache_plots.py.

const curves = (() => {
  const COLOURS = 7;
  const DASHES = ["none", "7 4", "2 3", "8 3 2 3"];
  const MOST_STATED_TOKENS = 2 ** 20;

  /** The contexts of all lines; the asked one is among them. */
  function contextsFor(data, found, contextTokens) {
    const stated = Math.max(0, ...found.map(({ model }) => model.max_context_tokens || 0));
    const longest = Math.max(Math.min(stated, MOST_STATED_TOKENS), contextTokens);
    const contexts = new Set([...planner.contextsUpTo(data, longest), contextTokens]);
    return [...contexts].sort((one, other) => one - other);
  }

  /** Lines of one thing with equal values become one, "fp8 = int8": a line cannot be seen behind another. */
  function merged(lines) {
    const same = new Map();
    for (const line of lines) {
      const key = JSON.stringify([line.of, line.values]);
      if (same.has(key)) same.get(key).format += ` = ${line.format}`;
      else same.set(key, { ...line });
    }
    return [...same.values()];
  }

  /** One colour per model and a dash per format; of one model a colour per format; twins are grey. */
  function looked(lines) {
    const distinct = (values) => [...new Set(values)];
    const own = lines.filter((line) => !line.twin);
    const models = distinct(own.map((line) => line.of));
    const formats = distinct(own.map((line) => line.format));
    const twins = distinct(lines.filter((line) => line.twin).map((line) => line.of));
    return lines.map((line) => {
      const format = formats.indexOf(line.format);
      const alone = models.length === 1;
      const colour = alone ? format : models.indexOf(line.of);
      const dash = line.twin ? 1 + (twins.indexOf(line.of) % 3) : alone ? 0 : format % DASHES.length;
      return {
        ...line,
        label: `${line.of}, ${line.format}`,
        look: line.twin ? "line twin" : `line c${colour % COLOURS}`,
        dash: DASHES[dash],
      };
    });
  }

  function ofCache(data, found, question, contexts, withTwins) {
    const pageTokens = question.deployment.pageTokens;
    const line = (of, groups, format, twin) => ({
      of,
      format,
      twin,
      contexts,
      values: planner.cacheCurve(data, groups, format, pageTokens, contexts),
    });
    const lines = found.flatMap(({ model }) =>
      question.formats.map((format) => line(tables.shortName(model.name), model.layers, format, false)),
    );
    const twins = withTwins && found.length === 1 ? found[0].model.twins : [];
    const twinLines = twins.map((twin) => line(`as ${twin.attention}`, [twin], question.formats[0], true));
    return looked(merged([...lines, ...twinLines]));
  }

  function ofUsers(data, found, question, devices, contexts) {
    const lines = found
      .filter(({ plans }) => plans[0].devices.length)
      .flatMap(({ model }) =>
        devices
          .filter((device) => device.memoryBytes !== null)
          .flatMap((device) =>
            question.formats.map((format) => ({
              of: tables.shortName(model.name) + (devices.length > 1 ? ` on ${device.name}` : ""),
              format,
              twin: false,
              contexts,
              values: planner.usersCurve(data, model, { ...question.deployment, format }, device.memoryBytes, contexts),
            })),
          ),
      );
    return looked(merged(lines));
  }

  return { contextsFor, ofCache, ofUsers };
})();
