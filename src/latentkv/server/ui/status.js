// The server's side: asks /status every second, and shows it as numbers and plots.

import { plot } from "./plot.js";

const EVERY_MS = 1000;
const COLOURS = ["var(--c0)", "var(--c1)", "var(--c2)"];
const at = (id) => document.getElementById(id);
const whole = (number) => (number === null || number === undefined ? "–" : Math.round(number).toLocaleString("en"));
const measured = (number) => {
  if (number === null || number === undefined) return "–";
  return number >= 100 ? whole(number) : number.toLocaleString("en", { maximumFractionDigits: number >= 10 ? 0 : 1 });
};

function plots() {
  const lines = (id, names, options) =>
    plot(at(id), names.map((name, index) => ({ name, colour: COLOURS[index] })), options);
  return {
    pages: lines("pages", ["in use", "kept for prefixes", "free"], { stacked: true, value: whole }),
    speed: lines("speed", ["decoded", "of prompts"], { value: measured }),
    latency: lines("latency", ["p50", "p99"], { value: measured }),
    ttft: lines("ttft", ["p50", "p99"], { value: measured }),
  };
}

export function watch() {
  const drawn = plots();
  let missed = 0;
  const ask = async () => {
    try {
      const answer = await fetch("../status", { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      show(await answer.json(), drawn);
      missed = 0;
    } catch (error) {
      missed += 1;
      if (missed > 1) unreachable(error);
    }
    setTimeout(ask, EVERY_MS);
  };
  ask();
}

function unreachable(error) {
  at("state").textContent = "does not answer";
  at("state").className = "bad";
  at("problem").textContent = `The server does not answer: ${error.message}. It is asked again every second.`;
  at("problem").hidden = false;
}

function show(status, drawn) {
  at("problem").hidden = true;
  at("state").textContent = status.state;
  at("state").className = status.state === "serving" ? "serving" : "";
  at("model").textContent = status.model;
  document.title = `${status.model} · latentkv`;
  if (!status.pages) return;
  const { requests, pages, tokens, speed, latency_ms: latency } = status;
  at("facts").textContent = [
    `${status.geometry.toUpperCase()} in ${status.format}`,
    `${whole(tokens.bytes_per_token)} B a token`,
    `${bytes(status.bytes.device)} of cache`,
  ].join(" · ");
  at("running").textContent = whole(requests.running);
  at("waiting").textContent = whole(requests.waiting);
  at("preemptions").textContent = whole(requests.preemptions);
  at("busy").textContent = `${Math.round(100 * speed.busy_share)} %`;
  at("reused").textContent = reused(tokens);
  at("backend").textContent = backend(status.backend);
  const all = pages.held + pages.cached + pages.free;
  const tiers = ["host", "disk"].filter((tier) => status.bytes[tier]).map((tier) => `${bytes(status.bytes[tier])} on ${tier}`);
  at("pages").querySelector("span").textContent = [`${whole(all)} in all`, ...tiers].join(", ");
  drawn.pages.add([pages.held, pages.cached, pages.free]);
  drawn.speed.add([speed.decode_tokens_per_second, speed.prefill_tokens_per_second]);
  drawn.latency.add([latency.inter_token.p50, latency.inter_token.p99]);
  drawn.ttft.add([latency.time_to_first_token.p50, latency.time_to_first_token.p99]);
}

function reused(tokens) {
  const asked = tokens.reused + tokens.prefill;
  return asked ? `${whole(tokens.reused)} (${Math.round((100 * tokens.reused) / asked)} %)` : "–";
}

function backend(told) {
  if (!told) return "–";
  const [first] = Object.entries(told.steps).sort((one, other) => other[1] - one[1]);
  const replaced = told.preferred !== "auto" && told.active !== told.preferred ? `, instead of ${told.preferred}` : "";
  return first ? `${first[0]}${replaced}` : `${told.active}${replaced}`;
}

function bytes(number) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (number >= size) return `${(number / size).toLocaleString("en", { maximumFractionDigits: 1 })} ${unit}`;
  }
  return `${number} B`;
}
