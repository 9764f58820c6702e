"use strict";
// Lines on logarithmic axes as SVG, with a legend that tells every line's value at the context being read.
// A slider under the plot moves the reading with the keyboard or a finger, the pointer over the plot with a mouse.

const plot = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const MARGIN = { left: 62, right: 14, top: 10, bottom: 42 };
  const HEIGHT = 300;

  function svg(tag, attributes, text) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  /** Powers of `base` that cover `low` to `high`, thinned out to at most `most`. */
  function ticks(low, high, base, most) {
    const first = Math.floor(Math.log(low) / Math.log(base) + 1e-9);
    const last = Math.ceil(Math.log(high) / Math.log(base) - 1e-9);
    const step = Math.max(1, Math.ceil((last - first) / most));
    const powers = [];
    for (let power = first; power < last + step; power += step) powers.push(base ** power);
    return powers;
  }

  function axes(picture, { width, x, y, plotted }) {
    const bottom = HEIGHT - MARGIN.bottom;
    for (const tick of plotted.xTicks) {
      picture.append(svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: MARGIN.top, y2: bottom }));
      picture.append(
        svg("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, sizes.tokenLabel(tick)),
      );
    }
    for (const tick of plotted.yTicks) {
      const ends = { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) };
      picture.append(svg("line", { class: "grid", ...ends }));
      picture.append(
        svg("text", { x: MARGIN.left - 6, y: y(tick) + 4, "text-anchor": "end" }, plotted.yLabel(tick)),
      );
    }
    const middle = (MARGIN.left + width - MARGIN.right) / 2;
    picture.append(
      svg("text", { class: "name", x: middle, y: HEIGHT - 6, "text-anchor": "middle" }, "context, tokens (k = 1,024)"),
    );
  }

  /** The d of a path; values of 0 have no place on the axis and interrupt the line. */
  function path(curve, x, y) {
    let drawing = false;
    return curve.contexts
      .map((tokens, index) => {
        if (curve.values[index] <= 0) {
          drawing = false;
          return "";
        }
        const point = `${drawing ? "L" : "M"}${x(tokens).toFixed(1)} ${y(curve.values[index]).toFixed(1)}`;
        drawing = true;
        return point;
      })
      .join("");
  }

  function scales(width, plotted) {
    const along = (ticks, from, to) => {
      const [low, high] = [Math.log(ticks[0]), Math.log(ticks[ticks.length - 1])];
      return (value) => from + ((Math.log(value) - low) / (high - low || 1)) * (to - from);
    };
    const contexts = plotted.curves[0].contexts;
    return {
      x: along([contexts[0], contexts[contexts.length - 1]], MARGIN.left, width - MARGIN.right),
      y: along(plotted.yTicks, HEIGHT - MARGIN.bottom, MARGIN.top),
    };
  }

  function withTicks(plotted, width) {
    const contexts = plotted.curves[0].contexts;
    const values = plotted.curves.flatMap((curve) => curve.values).filter((value) => value > 0);
    const [first, last] = [contexts[0], contexts[contexts.length - 1]];
    const low = Math.min(...values, plotted.least);
    const inside = ticks(first, last, 2, Math.floor(width / 65)).filter((tick) => tick >= first && tick <= last);
    const high = Math.max(...values, low * plotted.yBase);
    return { ...plotted, xTicks: inside, yTicks: ticks(low, high, plotted.yBase, 7) };
  }

  /** One line of the legend: how it is drawn, what it is, and where its value goes. */
  function legendItem(curve) {
    const item = document.createElement("li");
    const sample = svg("svg", { width: 30, height: 10, "aria-hidden": "true" });
    sample.append(svg("line", { x1: 1, x2: 29, y1: 5, y2: 5, class: curve.look, "stroke-dasharray": curve.dash }));
    const value = document.createElement("output");
    const label = document.createElement("span");
    label.textContent = curve.label;
    item.append(sample, label, value);
    return { item, value };
  }

  function nearest(contexts, x, position) {
    const away = contexts.map((tokens) => Math.abs(x(tokens) - position));
    return away.indexOf(Math.min(...away));
  }

  /**
   * Draw into `figure`: {title, curves: [{label, look, dash, contexts, values}], yBase, least, yLabel, told, at},
   * all curves over the same contexts; `at` is the context that is read first.
   */
  function draw(figure, plotted) {
    figure.replaceChildren();
    const caption = document.createElement("figcaption");
    caption.textContent = plotted.title;
    figure.append(caption);
    const width = Math.max(280, figure.clientWidth);
    const full = withTicks(plotted, width);
    const { x, y } = scales(width, full);
    const picture = svg("svg", {
      viewBox: `0 0 ${width} ${HEIGHT}`,
      width,
      height: HEIGHT,
      role: "img",
      "aria-label": `${plotted.title}; logarithmic axes; the values are in the legend`,
    });
    axes(picture, { width, x, y, plotted: full });
    for (const curve of plotted.curves) {
      picture.append(svg("path", { d: path(curve, x, y), class: curve.look, "stroke-dasharray": curve.dash }));
    }
    figure.append(picture);
    reading(figure, picture, full, x, y);
  }

  /** The legend with values, the slider, and the marks on the lines. */
  function reading(figure, picture, plotted, x, y) {
    const contexts = plotted.curves[0].contexts;
    const mark = svg("line", { class: "mark", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom });
    const dots = plotted.curves.map((curve) => svg("circle", { r: 3.5, class: curve.look }));
    picture.append(mark, ...dots);
    const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: contexts.length - 1 });
    slider.setAttribute("aria-label", `${plotted.title}: context to read`);
    const at = document.createElement("p");
    const legend = document.createElement("ul");
    const items = plotted.curves.map(legendItem);
    legend.append(...items.map(({ item }) => item));
    figure.append(slider, at, legend);
    const show = (index) => {
      slider.value = index;
      slider.setAttribute("aria-valuetext", `${sizes.commas(contexts[index])} tokens`);
      at.textContent = `at ${sizes.commas(contexts[index])} tokens`;
      mark.setAttribute("x1", x(contexts[index]));
      mark.setAttribute("x2", x(contexts[index]));
      plotted.curves.forEach((curve, number) => {
        const value = curve.values[index];
        items[number].value.textContent = plotted.told(value);
        dots[number].setAttribute("cx", x(contexts[index]));
        dots[number].setAttribute("cy", value > 0 ? y(value) : -10);
      });
    };
    slider.addEventListener("input", () => show(Number(slider.value)));
    picture.addEventListener("pointermove", (event) => {
      show(nearest(contexts, x, event.clientX - picture.getBoundingClientRect().left));
    });
    show(contexts.indexOf(plotted.at));
  }

  return { draw };
})();
