// The chat: sends the conversation to /v1/chat/completions and shows the answer as it streams.

const at = (id) => document.getElementById(id);
const KEY = "latentkv-key";
const WRITE_EVERY_MS = 50;
let conversation = [];
let running = null;

export function chat() {
  at("key").value = sessionStorage.getItem(KEY) ?? "";
  at("key").addEventListener("input", () => sessionStorage.setItem(KEY, at("key").value));
  at("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
  at("stop").addEventListener("click", () => running?.abort());
  at("clear").addEventListener("click", clear);
}

function clear() {
  running?.abort();
  conversation = [];
  for (const item of document.querySelectorAll("#messages li:not(.hint)")) item.remove();
  document.querySelector("#messages .hint").hidden = false;
  at("prompt").focus();
}

async function send() {
  const text = at("prompt").value.trim();
  if (!text || running) return;
  at("prompt").value = "";
  document.querySelector("#messages .hint").hidden = true;
  say("user", text);
  const mine = [...conversation, { role: "user", content: text }];
  conversation = mine;
  const answer = say("assistant", "");
  busy(new AbortController());
  const abort = running;
  const writing = writer(answer);
  let said = "";
  try {
    const told = await stream(mine, abort.signal, (piece) => { said += piece; writing.write(piece); });
    writing.flush();
    finish(answer, told);
  } catch (error) {
    writing.flush();
    finish(answer, abort.signal.aborted ? "stopped" : error.message, { failed: !abort.signal.aborted });
    if (!said && !abort.signal.aborted && conversation === mine) at("prompt").value = text;
  }
  if (conversation === mine) {
    conversation = said ? [...mine, { role: "assistant", content: said }] : mine.slice(0, -1);
  }
  busy(null);
  // After a refused key the cursor stands where the right one goes.
  if (document.activeElement !== at("key")) at("prompt").focus();
}

function busy(controller) {
  running = controller;
  at("send").disabled = controller !== null;
  at("stop").hidden = controller === null;
}

// Calls `piece` with each piece of text; what the stream was like, in words. Throws with the server's own sentence.
async function stream(messages, signal, piece) {
  const begin = performance.now();
  const answer = await fetch("../v1/chat/completions", { method: "POST", signal, headers: headers(), body: body(messages) });
  if (!answer.ok) throw new Error(await refusal(answer));
  let first = null, usage = null, reason = null;
  for await (const event of events(answer.body)) {
    if (event.error) throw new Error(event.error.message);
    usage = event.usage ?? usage;
    const choice = event.choices?.[0];
    reason = choice?.finish_reason ?? reason;
    if (choice?.delta?.content) {
      first ??= performance.now();
      piece(choice.delta.content);
    }
  }
  return summary(begin, first, performance.now(), usage, reason);
}

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function body(messages) {
  return JSON.stringify({
    model: at("model").textContent,
    messages,
    temperature: Number(at("temperature").value),
    max_tokens: Math.max(1, Math.round(Number(at("max-tokens").value)) || 1),
    stream: true,
    stream_options: { include_usage: true },
  });
}

async function refusal(answer) {
  if (answer.status === 401) {
    at("settings").open = true;
    at("key").focus();
  }
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered with status ${answer.status}`;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the answer was cut off");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function summary(begin, first, end, usage, reason) {
  const told = [];
  if (usage) told.push(`${usage.completion_tokens} tokens`);
  if (first !== null) told.push(`first after ${Math.round(first - begin)} ms`);
  if (usage?.completion_tokens > 1 && end > first) {
    told.push(`${((1000 * (usage.completion_tokens - 1)) / (end - first)).toFixed(1)} tokens per second`);
  }
  if (reason === "length") told.push("longest answer reached");
  return told.join(" · ") || "nothing was said";
}

function say(role, text) {
  const item = document.createElement("li");
  item.className = role === "assistant" ? "assistant live" : role;
  const shown = document.createElement("span");
  shown.className = "text";
  shown.textContent = text;
  item.append(shown);
  at("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

// Pieces are shown a few at a time: each time the whole answer is laid out anew, and a page that does so for every token of a fast
// model no longer hears its keys.
function writer(item) {
  let waiting = "", timer = null;
  const flush = () => {
    clearTimeout(timer);
    timer = null;
    if (waiting) grow(item, waiting);
    waiting = "";
  };
  const write = (piece) => {
    waiting += piece;
    timer ??= setTimeout(flush, WRITE_EVERY_MS);
  };
  return { write, flush };
}

function grow(item, piece) {
  const list = at("messages");
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  item.querySelector(".text").append(piece);
  if (follows) list.scrollTop = list.scrollHeight;
}

function finish(item, told, { failed = false } = {}) {
  item.classList.remove("live");
  item.classList.toggle("failed", failed);
  const note = document.createElement("small");
  note.className = "told";
  note.textContent = told;
  item.append(note);
  at("messages").scrollTop = at("messages").scrollHeight;
}
