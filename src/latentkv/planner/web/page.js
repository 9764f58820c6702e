"use strict";
// The page itself: controls that change the choices, and results that follow them at once.

(() => {
  const data = JSON.parse(document.getElementById("planner-data").textContent);
  const models = new Map(data.models.map((model) => [model.name, model]));
  const refused = new Map(data.refused.map((model) => [model.name, model.reason]));
  const byId = (id) => document.getElementById(id);
  const { element } = tables;
  const TYPED = ["context", "users", "memory", "tensor", "pipeline", "data", "context_ranks", "step_tokens"];
  const FIELDS = [...TYPED, "activations", "reserve", "page_tokens"];
  const SIZE = "a size …";
  let choices = state.fromHash(location.hash, data.start);
  let shown = null;

  function change(part) {
    choices = { ...choices, ...part };
    try {
      history.replaceState(null, "", `#${state.toHash(choices)}`);
    } catch (error) {
      // Some browsers refuse it in pages opened from disk: the page works, "Copy link" still tells the address.
    }
    showControls();
    showResults();
  }

  const aboutModel = (model) => model.layers.map((group) => `${group.count} × ${group.attention}`).join(", ");
  const options = [
    ...data.models.map((model) => ({ name: model.name, about: aboutModel(model) })),
    ...data.refused.map((model) => ({ name: model.name, about: "cannot be counted" })),
  ];
  const aboutDevice = (device) => sizes.inGbAndGib(device.memory_bytes);
  const deviceOptions = data.devices.map((device) => ({ name: device.name, about: aboutDevice(device) }));
  const showModels = picker.make("models", options, (names) => change({ models: names }));
  const showDevices = picker.make("devices", deviceOptions, (names) => change({ devices: names }));

  function makeControls() {
    byId("list-formats").append(
      ...data.formats.map((format) => {
        const box = element("input", { type: "checkbox", value: format });
        box.addEventListener("change", () => {
          const on = new Set([...byId("list-formats").querySelectorAll("input:checked")].map((each) => each.value));
          change({ formats: data.formats.filter((each) => on.has(each)) });
        });
        return element("label", {}, box, format);
      }),
    );
    const stored = data.models.some((model) => "stored" in model.weights) ? ["stored"] : [];
    const weights = [...Object.keys(data.weight_formats), ...stored, "none", SIZE];
    byId("weights").append(...weights.map((name) => element("option", { value: name }, name)));
    byId("page_tokens").append(...data.page_tokens.map((size) => element("option", { value: size }, String(size))));
    for (const name of FIELDS) byId(name).addEventListener("input", (event) => change({ [name]: event.target.value }));
    byId("weights").addEventListener("input", (event) => {
      change({ weights: event.target.value === SIZE ? "14GiB" : event.target.value });
    });
    byId("weights-size").addEventListener("input", (event) => change({ weights: event.target.value || "0B" }));
    byId("twins").addEventListener("change", (event) => change({ twins: event.target.checked ? "yes" : "no" }));
    const slide = (name, unit) =>
      byId(`${name}-slider`).addEventListener("input", (event) => {
        const size = Math.round(2 ** Number(event.target.value));
        change({ [name]: unit && size % 1024 === 0 ? `${size / 1024}k` : String(size) });
      });
    slide("context", true);
    slide("users", false);
    byId("choices").addEventListener("submit", (event) => event.preventDefault());
  }

  /** Put a text into a field, but never while it is being typed there. */
  function put(id, text) {
    if (byId(id) !== document.activeElement || byId(id).value === "") byId(id).value = text;
  }

  function showControls() {
    showModels(choices.models);
    showDevices(choices.devices);
    for (const box of byId("list-formats").querySelectorAll("input")) box.checked = choices.formats.includes(box.value);
    for (const name of FIELDS) if (byId(name) !== document.activeElement) byId(name).value = choices[name];
    const isSize = /^\s*[0-9]/.test(choices.weights);
    byId("weights").value = isSize ? SIZE : choices.weights;
    byId("weights-size-label").hidden = !isSize;
    if (isSize) put("weights-size", choices.weights);
    byId("twins").checked = choices.twins === "yes";
    byId("command").textContent = state.command(choices);
  }

  function showErrors(errors) {
    const fields = { models: "search-models", devices: "search-devices", weights: "weights-size" };
    for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    for (const name of Object.keys(errors)) {
      const field = byId(fields[name] || name);
      if (field) field.setAttribute("aria-invalid", "true");
    }
    byId("errors").replaceChildren(...Object.values(errors).map((sentence) => element("li", {}, sentence)));
  }

  function showSliders(question) {
    const sliders = { context: question.contextTokens, users: question.users };
    for (const [name, size] of Object.entries(sliders)) {
      const slider = byId(`${name}-slider`);
      if (size !== null && slider !== document.activeElement) slider.value = Math.log2(size);
      if (size !== null) slider.setAttribute("aria-valuetext", sizes.commas(size));
    }
  }

  function showResults() {
    const { question, devices, errors } = state.asked(data, choices);
    showErrors(errors);
    showSliders(question);
    byId("results").classList.toggle("old", Object.keys(errors).length > 0);
    if (Object.keys(errors).length) return;
    const counted = choices.models.filter((name) => models.has(name)).map((name) => models.get(name));
    const found = counted.map((model) => ({
      model,
      plans: devices.map((device) => planner.makePlan(data, model, { ...question, memoryBytes: device.memoryBytes })),
    }));
    for (const each of found) each.notes = notes.on(data, each.model, question, each.plans);
    shown = { question, devices, found };
    const withTwins = choices.twins === "yes";
    const refusals = choices.models.filter((name) => refused.has(name)).map((name) => [name, refused.get(name)]);
    tables.cache(byId("cache"), found, refusals, question, withTwins);
    tables.devices(byId("devices"), found, devices, question);
    showSaid(question);
    showNotes(found);
    drawPlots();
  }

  function showSaid(question) {
    const { parallel, pageTokens, weights } = question.deployment;
    const users = question.users === 1 ? "1 user" : `${sizes.commas(question.users)} users`;
    const count = parallel.tensor * parallel.pipeline * parallel.data;
    byId("cache-said").textContent =
      `Context ${sizes.commas(question.contextTokens)} tokens, pages of ${pageTokens} tokens. All layers together.`;
    byId("devices-said").textContent =
      `${users} of ${sizes.commas(question.contextTokens)} tokens, weights ` +
      `${typeof weights === "number" ? `of ${sizes.inGbAndGib(weights)}` : weights}. Bytes on the fullest ` +
      (count === 1 ? "device." : `of ${sizes.commas(count)} devices; other ways to use as many devices follow.`);
  }

  function showNotes(found) {
    const blocks = found.map((each) => {
      const items = each.notes.map((note) => element("li", {}, note));
      items.push(element("li", {}, `Configuration from: ${each.model.source}`));
      return element("div", {}, element("h3", {}, each.model.name), element("ul", {}, ...items));
    });
    byId("notes").replaceChildren(...blocks);
  }

  function drawPlots() {
    if (!shown) return;
    const { question, devices, found } = shown;
    const at = question.contextTokens;
    const contexts = found.length ? curves.contextsFor(data, found, at) : [];
    const cache = found.length ? curves.ofCache(data, found, question, contexts, choices.twins === "yes") : [];
    const users = found.length ? curves.ofUsers(data, found, question, devices, contexts) : [];
    byId("cache-plot").hidden = !cache.length;
    byId("users-plot").hidden = !users.length;
    const common = { at, least: Infinity };
    if (cache.length) {
      const looks = { yBase: 2, yLabel: sizes.binaryLabel, told: sizes.inGbAndGib };
      plot.draw(byId("cache-plot"), { ...common, ...looks, curves: cache, title: "Cache of one user against context" });
    }
    if (users.length) {
      const told = (value) => (value >= data.constants.unbounded ? "any number" : sizes.commas(value));
      const looks = { yBase: 10, yLabel: sizes.commas, told, least: 1 };
      const title = `Most users against context, weights and step included`;
      plot.draw(byId("users-plot"), { ...common, ...looks, curves: users, title });
    }
  }

  /** The record of `latentkv plan --json`, one plan per model and device. */
  function record() {
    const plans = shown.found.flatMap((each) =>
      each.plans.map((plan, index) => ({
        ...plan,
        device: shown.devices[index].name || null,
        notes: each.notes,
      })),
    );
    return `${JSON.stringify({ plans }, null, 2)}\n`;
  }

  async function copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) {
      // Without permission or a secure address there is still the older way.
      const area = element("textarea", { value: text, className: "off" });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    byId("copied").textContent = done;
    setTimeout(() => (byId("copied").textContent = ""), 2000);
  }

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");

  function showTheme() {
    const dark = (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
    byId("theme").textContent = dark ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", dark ? "Use the light colours" : "Use the dark colours");
    return dark;
  }

  function start() {
    makeControls();
    byId("copy-link").addEventListener("click", () => {
      copy(`${location.href.split("#")[0]}#${state.toHash(choices)}`, "Link copied");
    });
    byId("copy-json").addEventListener("click", () => copy(record(), "JSON copied"));
    byId("theme").addEventListener("click", () => {
      document.documentElement.dataset.theme = showTheme() ? "light" : "dark";
      showTheme();
    });
    prefersDark.addEventListener("change", showTheme);
    window.addEventListener("hashchange", () => {
      choices = state.fromHash(location.hash, data.start);
      showControls();
      showResults();
    });
    let width = innerWidth;
    window.addEventListener("resize", () => {
      if (innerWidth !== width) drawPlots();
      width = innerWidth;
    });
    byId("skip").addEventListener("click", () => {
      byId("results").focus();
      byId("results").scrollIntoView();
    });
    const arrived = ([seen]) => byId("skip").classList.toggle("there", seen.isIntersecting);
    new IntersectionObserver(arrived).observe(byId("results"));
    showTheme();
    showControls();
    showResults();
  }

  start();
})();
