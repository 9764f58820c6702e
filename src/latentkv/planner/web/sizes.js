"use strict";
// Sizes as people type them and as they are told: latentkv/planner/units.py, GB (10^9 bytes) never mistaken for GiB.

const sizes = (() => {
  const BYTES = { b: 1, kb: 1e3, mb: 1e6, gb: 1e9, tb: 1e12, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30, tib: 2 ** 40 };
  const COUNTS = { "": 1, k: 2 ** 10, m: 2 ** 20 };
  const SIZE = /^\s*([0-9][0-9,_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$/;
  const MOST = Number.MAX_SAFE_INTEGER;

  const commas = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 0 });

  function whole(text, name, units, expected) {
    const match = SIZE.exec(text);
    const unit = match && match[2].toLowerCase();
    if (!match || !Object.hasOwn(units, unit)) throw new RangeError(`${name}: expected ${expected}, got "${text}".`);
    const number = Number(match[1].replace(/[,_]/g, "")) * units[unit];
    const size = match[1].includes(".") ? planner.roundHalfEven(number) : number;
    if (size < 1) throw new RangeError(`${name}: expected a size above zero, got "${text}".`);
    if (size > MOST) throw new RangeError(`${name}: expected at most 2^53, got "${text}".`);
    return size;
  }

  /** Bytes in "80GiB" or "80 GB"; a number without a unit is refused. */
  const parseBytes = (text, name) => whole(text, name, BYTES, "a size with its unit, such as 80GiB or 80GB");

  /** Tokens in "32768", "32,768" or "32k" (k is 1,024). */
  const parseTokens = (text, name) => whole(text, name, COUNTS, "a number of tokens such as 32768 or 32k");

  function parseCount(text, name) {
    if (!/^\s*[0-9]+\s*$/.test(text) || Number(text) < 1 || Number(text) > MOST) {
      throw new RangeError(`${name}: expected a whole number of 1 or more, got "${text}".`);
    }
    return Number(text);
  }

  /** With `digits` after the point; an exact half goes to the even neighbour, as in Python. */
  function fixed(value, digits) {
    const scale = 10 ** digits;
    const isHalf = Number.isInteger(value * 2 ** (digits + 1)) && (value * scale) % 1 === 0.5;
    const rounded = isHalf ? planner.roundHalfEven(value * scale) / scale : value;
    return rounded.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }

  /** About four figures: 1,234 · 123.4 · 12.34 · 0.123. */
  function short(value) {
    if (value >= 1000) return fixed(value, 0);
    return fixed(value, value >= 100 ? 1 : value >= 1 ? 2 : 3);
  }

  /** "12.75 GB" and "(11.88 GiB)"; below 1 KB bytes alone. */
  function gbAndGib(bytes) {
    for (const [power, prefix] of [[3, "G"], [2, "M"], [1, "K"]]) {
      if (bytes >= 1000 ** power) {
        return [`${short(bytes / 1000 ** power)} ${prefix}B`, `(${short(bytes / 1024 ** power)} ${prefix}iB)`];
      }
    }
    return [`${commas(bytes)} B`];
  }

  const inGbAndGib = (bytes) => gbAndGib(bytes).join(" ");

  /** "32k", "1M": the label of an axis; other numbers in full. */
  function tokenLabel(tokens) {
    if (tokens >= 2 ** 20 && tokens % 2 ** 18 === 0) return `${tokens / 2 ** 20}M`;
    return tokens >= 1024 && tokens % 1024 === 0 ? `${tokens / 1024}k` : commas(tokens);
  }

  /** "64 GiB": the label of an axis whose ticks are powers of two. */
  function binaryLabel(bytes) {
    for (const [power, unit] of [[4, "TiB"], [3, "GiB"], [2, "MiB"], [1, "KiB"]]) {
      if (bytes >= 1024 ** power) return `${commas(bytes / 1024 ** power)} ${unit}`;
    }
    return `${bytes} B`;
  }

  return { parseBytes, parseTokens, parseCount, commas, fixed, short, gbAndGib, inGbAndGib, tokenLabel, binaryLabel };
})();
