"use strict";
// The reader's choices: as texts that the address of the page holds, and as the question that plan.js answers.

const state = (() => {
  // Names in the address: those of the command line's options.
  const SHORT = {
    models: "models",
    formats: "format",
    devices: "device",
    memory: "memory",
    context: "context",
    users: "users",
    weights: "weights",
    tensor: "tp",
    pipeline: "pp",
    data: "dp",
    context_ranks: "cp",
    page_tokens: "page-tokens",
    step_tokens: "step-tokens",
    activations: "activations",
    reserve: "reserve",
    twins: "twins",
  };
  const LISTS = ["models", "formats", "devices"];

  /** What follows # in the address. */
  function toHash(choices) {
    const parts = new URLSearchParams();
    for (const [name, short] of Object.entries(SHORT)) {
      const value = LISTS.includes(name) ? choices[name].join(",") : choices[name];
      if (value !== "" || LISTS.includes(name)) parts.set(short, value);
    }
    return parts.toString().replaceAll("%2F", "/").replaceAll("%2C", ",");
  }

  /** The choices in `hash`; an empty one is the start, and in any other what it leaves out is empty or the start's. */
  function fromHash(hash, start) {
    const parts = new URLSearchParams(hash.replace(/^#/, ""));
    const choices = structuredClone(start);
    const known = Object.entries(SHORT).filter(([, short]) => parts.has(short));
    if (known.length) choices.memory = choices.activations = choices.reserve = "";
    for (const [name, short] of known) {
      const text = parts.get(short);
      choices[name] = LISTS.includes(name) ? text.split(",").filter(Boolean) : text;
    }
    return choices;
  }

  /** The question that `choices` ask, and sentences about those that cannot be used: {question, devices, errors}. */
  function asked(data, choices) {
    const errors = {};
    const read = (name, parse, said) => {
      try {
        return parse(choices[name], said);
      } catch (error) {
        errors[name] = error.message;
        return null;
      }
    };
    const size = (name, said, empty) => (choices[name].trim() === "" ? empty : read(name, sizes.parseBytes, said));
    const parallel = {
      tensor: read("tensor", sizes.parseCount, "Tensor parallelism"),
      pipeline: read("pipeline", sizes.parseCount, "Pipeline parallelism"),
      data: read("data", sizes.parseCount, "Data parallelism"),
      context: read("context_ranks", sizes.parseCount, "Context parallelism"),
    };
    if (parallel.tensor % parallel.context) {
      errors.context_ranks =
        `Context parallelism: expected a divisor of tensor parallelism (${parallel.tensor}), got ${parallel.context}.`;
    }
    checkLists(data, choices, errors);
    const question = {
      contextTokens: read("context", sizes.parseTokens, "Context"),
      users: read("users", sizes.parseCount, "Users"),
      formats: choices.formats,
      memoryBytes: null,
      deployment: {
        pageTokens: Number(choices.page_tokens),
        weights: /^\s*[0-9]/.test(choices.weights) ? read("weights", sizes.parseBytes, "Weights") : choices.weights,
        parallel,
        stepTokens: read("step_tokens", sizes.parseCount, "New tokens of a step"),
        activationBytes: size("activations", "Measured need of a step", null),
        reserveBytes: size("reserve", "Kept free", 0),
      },
    };
    return { question, devices: devicesOf(data, choices, size("memory", "Memory", null)), errors };
  }

  function checkLists(data, choices, errors) {
    const known = new Set([...data.models, ...data.refused].map((model) => model.name));
    const unknown = choices.models.find((name) => !known.has(name));
    const device = choices.devices.find((name) => !data.devices.some((each) => each.name === name));
    const format = choices.formats.find((name) => !data.formats.includes(name));
    if (unknown) errors.models = `Model ${unknown} is not in this page's catalogue.`;
    else if (!choices.models.length) errors.models = "Choose a model.";
    if (format) errors.formats = `Cache format: expected one of ${data.formats.join(", ")}, got "${format}".`;
    else if (!choices.formats.length) errors.formats = "Choose a cache format.";
    if (device) errors.devices = `Device ${device} is not in this page's catalogue.`;
    if (!data.page_tokens.includes(Number(choices.page_tokens))) {
      errors.page_tokens = `Tokens in a page: expected one of ${data.page_tokens.join(", ")}.`;
    }
    const weights = [...Object.keys(data.weight_formats), "stored", "none"];
    if (!weights.includes(choices.weights) && !/^\s*[0-9]/.test(choices.weights)) {
      errors.weights = `Weights: expected ${weights.join(", ")}, or a size such as 14GiB, got "${choices.weights}".`;
    }
  }

  /** The chosen devices and the stated memory, each {name, memoryBytes}; one without memory when there is neither. */
  function devicesOf(data, choices, statedBytes) {
    const found = data.devices
      .filter((device) => choices.devices.includes(device.name))
      .map((device) => ({ name: device.name, memoryBytes: device.memory_bytes }));
    if (statedBytes !== null) found.push({ name: choices.memory.trim(), memoryBytes: statedBytes });
    return found.length ? found : [{ name: "", memoryBytes: null }];
  }

  /** The command that asks the same of the first device. */
  function command(choices) {
    const words = ["latentkv plan", ...choices.models];
    for (const format of choices.formats) words.push("--format", format);
    words.push("--context", choices.context, "--users", choices.users, "--weights", choices.weights);
    if (choices.memory) words.push("--memory", choices.memory);
    for (const name of ["tensor", "pipeline", "data", "context_ranks"]) {
      if (choices[name] !== "1") words.push(`--${SHORT[name]}`, choices[name]);
    }
    return words.map((word) => (/\s/.test(word) && !word.startsWith("latentkv") ? `"${word}"` : word)).join(" ");
  }

  return { toHash, fromHash, asked, command };
})();
