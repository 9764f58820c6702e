"use strict";
// Plans as tables and curves. Each cell of a number carries its name, as `latentkv plan --json` spells it.

const tables = (() => {
  const comma = sizes.commas;
  const shortName = (name) => name.slice(name.lastIndexOf("/") + 1);

  /** An element with attributes and children; children may be texts. */
  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name in node && name !== "list") node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  const number = (name, text) => element("td", { "data-name": name }, text);

  /** A size in GB and GiB, which may take a line each, and on hovering in bytes. */
  function sizeCell(name, bytes) {
    const parts = sizes.gbAndGib(bytes).flatMap((part) => [element("span", {}, part), " "]);
    return element("td", { "data-name": name, title: `${comma(bytes)} B`, className: "size" }, ...parts);
  }

  function head(columns) {
    const cells = columns.map(([text, title]) => {
      return element("th", { scope: "col", title: title || "" }, element("span", {}, text));
    });
    return element("thead", {}, element("tr", {}, ...cells));
  }

  function modelRow(name, columns, extra) {
    const about = element("small", {}, extra);
    const title = element("th", { scope: "rowgroup", colSpan: columns }, shortName(name), " ", about);
    return element("tr", { className: "model" }, title);
  }

  function fill(table, columns, bodies) {
    table.replaceChildren(head(columns), ...bodies);
  }

  function cacheRow(line, users, isTwin) {
    const layer = line.bytes_per_token_and_layer;
    return element(
      "tr",
      { className: isTwin ? "twin" : "own", "data-format": line.format },
      element("th", { scope: "row" }, isTwin ? `as ${line.attention}, ${line.format}` : line.format),
      number("bytes_per_token_and_layer", layer === null ? "differs" : comma(layer)),
      number("bytes_per_token", comma(line.bytes_per_token)),
      sizeCell("sequence_bytes", line.sequence_bytes),
      sizeCell("all_users_bytes", line.sequence_bytes * users),
      number("ratio_to_own", `${sizes.fixed(line.ratio_to_own, 2)}×`),
      number("elements_per_token", comma(line.elements_per_token)),
    );
  }

  function cache(table, found, refusals, question, withTwins) {
    const columns = [
      ["Format"],
      ["Bytes per token and layer"],
      ["Bytes per token", "In all layers, before windows fill"],
      ["One user", "One sequence of the context, in whole pages"],
      [question.users === 1 ? "1 user" : `${comma(question.users)} users`, "All users, in one copy of the model"],
      ["Times the first", "Bytes per token over those of the model's first format"],
      ["Elements per token", "Numbers cached for one token in all layers, scales not counted"],
    ];
    const bodies = found.map(({ model, plans: [plan] }) =>
      element(
        "tbody",
        { "data-model": model.name },
        modelRow(model.name, columns.length, plan.cache[0].attention),
        ...plan.cache.map((line) => cacheRow(line, question.users, false)),
        ...(withTwins ? plan.twins.map((line) => cacheRow(line, question.users, true)) : []),
      ),
    );
    const refused = refusals.map(([name, reason]) => {
      const cell = element("td", { colSpan: columns.length, className: "refusal" }, element("p", {}, reason));
      return element("tbody", {}, modelRow(name, columns.length, "not counted"), element("tr", {}, cell));
    });
    fill(table, columns, [...bodies, ...refused]);
  }

  function shareBar(bytes, memoryBytes) {
    if (memoryBytes === null) return "";
    const share = bytes / memoryBytes;
    const bar = element("span", { className: share > 1 ? "bar over" : "bar" });
    bar.append(element("span", { style: `width: ${Math.min(100, 100 * share).toFixed(1)}%` }));
    const text = share > 1 ? `does not fit: ${sizes.short(100 * share)} %` : `${sizes.short(100 * share)} % of it`;
    return element("span", { className: "share" }, bar, element("small", {}, text));
  }

  function deviceRow(way, device) {
    const bytes = (name) => sizeCell(name, way.need[name]);
    const step = way.need.activations_bytes + way.need.workspace_bytes + way.need.reserve_bytes;
    const total = bytes("total_bytes");
    total.append(shareBar(way.need.total_bytes, device.memoryBytes));
    const tokens = (value) => (device.memoryBytes === null ? "–" : way.unbounded ? "any" : comma(value));
    return element(
      "tr",
      { "data-format": way.format, "data-parallel": way.parallel, "data-device": device.name },
      element("th", { scope: "row" }, way.parallel, ", ", way.format),
      number("most_users", device.memoryBytes === null ? "–" : comma(way.most_users)),
      number("longest_tokens", tokens(way.longest_tokens)),
      number("most_tokens", tokens(way.most_tokens)),
      total,
      bytes("cache_bytes"),
      bytes("weights_bytes"),
      sizeCell("step_bytes", step),
    );
  }

  function deviceTitle(name, device, ways) {
    const memory = device.memoryBytes === null ? "no memory stated" : sizes.inGbAndGib(device.memoryBytes);
    const label = device.name && device.memoryBytes !== null ? `${device.name}, ${memory}` : memory;
    return modelRow(name, 8, `${ways[0].devices === 1 ? "on 1 device" : `on ${ways[0].devices} devices`}: ${label}`);
  }

  function devices(table, found, choices, question) {
    const columns = [
      ["Layout, format"],
      [`Most users of ${comma(question.contextTokens)} tokens`, "That all devices hold together"],
      [question.users === 1 ? "Longest context of 1 user" : `Longest context of ${comma(question.users)} users`],
      ["Tokens in all", "In one sequence per data rank"],
      ["Total", "On the fullest device"],
      ["of which cache", `Of ${comma(question.users)} users`],
      ["Weights"],
      ["Step", "Activations, workspace and what is kept free"],
    ];
    const bodies = found.flatMap(({ model, plans }) =>
      plans
        .map((plan, index) => ({ plan, device: choices[index] }))
        .filter(({ plan }) => plan.devices.length)
        .map(({ plan, device }) =>
          element(
            "tbody",
            { "data-model": model.name, "data-device": device.name },
            deviceTitle(model.name, device, plan.devices),
            ...plan.devices.map((way) => deviceRow(way, device)),
          ),
        ),
    );
    fill(table, columns, bodies);
  }

  return { cache, devices, element, shortName };
})();
