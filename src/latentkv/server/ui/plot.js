// A plot of the last minutes: lines, or areas stacked on each other. Knows nothing of what is plotted.

const NAMESPACE = "http://www.w3.org/2000/svg";
const HEIGHT = 120, TOP = 8, BOTTOM = 14, LEFT = 44;

export const SAMPLES = 180;

// series: [{ name, colour }]; `value` makes text of a number.
export function plot(figure, series, { stacked = false, value }) {
  const svg = make("svg", { role: "img" });
  const list = document.createElement("ul");
  const outputs = series.map(({ name, colour }) => legend(list, name, colour));
  figure.append(svg, list);
  const history = [];
  return {
    add(numbers) {
      history.push(numbers);
      if (history.length > SAMPLES) history.shift();
      outputs.forEach((output, index) => { output.textContent = value(numbers[index]); });
      svg.setAttribute("aria-label", series.map(({ name }, index) => `${name} ${value(numbers[index])}`).join(", "));
      draw(svg, history, series, stacked, value);
    },
  };
}

function legend(list, name, colour) {
  const item = document.createElement("li");
  const mark = document.createElement("i");
  mark.style.background = colour;
  const output = document.createElement("output");
  item.append(mark, `${name} `, output);
  list.append(item);
  return output;
}

function draw(svg, history, series, stacked, value) {
  const width = svg.clientWidth || 400;
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const rows = history.map((numbers) => (stacked ? sums(numbers) : numbers));
  const top = ceiling(Math.max(0, ...rows.flat().filter((number) => number !== null)), stacked);
  const x = (index) => width - ((history.length - 1 - index) * (width - LEFT)) / (SAMPLES - 1);
  const y = (number) => HEIGHT - BOTTOM - (number / top) * (HEIGHT - TOP - BOTTOM);
  const parts = [0, top / 2, top].flatMap((level) => [
    make("line", { class: "grid", x1: LEFT, x2: width, y1: y(level), y2: y(level) }),
    make("text", { x: LEFT - 6, y: y(level) + 4, "text-anchor": "end" }, value(level)),
  ]);
  parts.push(make("text", { x: LEFT, y: HEIGHT - 1 }, "3 min ago"));
  parts.push(make("text", { x: width, y: HEIGHT - 1, "text-anchor": "end" }, "now"));
  series.forEach(({ colour }, index) => {
    const shown = stacked ? series.length - 1 - index : index;
    parts.push(stacked
      ? make("path", { d: area(rows, shown, x, y), fill: series[shown].colour })
      : make("path", { d: line(rows, shown, x, y), fill: "none", stroke: colour, "stroke-width": 2, "stroke-linejoin": "round" }));
  });
  svg.replaceChildren(...parts);
}

function sums(numbers) {
  let sum = 0;
  return numbers.map((number) => (sum += number));
}

// The line is interrupted where there is no number.
function line(rows, index, x, y) {
  let pen = "M";
  return rows.map((row, place) => {
    if (row[index] === null) { pen = "M"; return ""; }
    const step = `${pen}${x(place).toFixed(1)},${y(row[index]).toFixed(1)}`;
    pen = "L";
    return step;
  }).join("");
}

function area(rows, index, x, y) {
  const edge = rows.map((row, place) => `${x(place).toFixed(1)},${y(row[index]).toFixed(1)}`);
  return `M${x(0).toFixed(1)},${y(0)}L${edge.join("L")}L${x(rows.length - 1).toFixed(1)},${y(0)}Z`;
}

// The whole of a stack is its scale; lines get a round number above them.
function ceiling(most, exact) {
  if (most <= 0) return 1;
  if (exact) return most;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 4, 5, 8, 10].map((step) => step * power).find((step) => step >= most);
}

function make(name, attributes, text) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
