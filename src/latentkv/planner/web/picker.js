"use strict";
// A searchable list of checkboxes, with what is chosen above it.

const picker = (() => {
  const { element } = tables;

  /** Whether every word of `wanted` occurs in `text`. */
  function matches(text, wanted) {
    const lower = text.toLowerCase();
    return wanted.toLowerCase().split(/\s+/).every((word) => lower.includes(word));
  }

  /**
   * Fill the elements "list-NAME", "search-NAME" and "chosen-NAME" with `options` ({name, about}).
   * `changed(names)` is called with what is chosen; the function returned shows another choice.
   */
  function make(name, options, changed) {
    const ids = ["list", "search", "chosen"].map((part) => `${part}-${name}`);
    const [list, search, chosen] = ids.map((id) => document.getElementById(id));
    let names = [];
    const none = element("li", { className: "none", hidden: true }, "Nothing matches.");
    const rows = options.map(({ name: option, about }) => {
      const box = element("input", { type: "checkbox", value: option });
      box.addEventListener("change", () => toggle(option, box.checked));
      const label = element("label", {}, box, element("span", {}, option, " ", element("small", {}, about)));
      return { box, option, text: `${option} ${about}`, row: element("li", {}, label) };
    });
    list.append(...rows.map(({ row }) => row), none);

    function toggle(option, on) {
      const rest = names.filter((each) => each !== option);
      changed(on ? [...rest, option] : rest);
    }

    function filter() {
      for (const { row, text } of rows) row.hidden = !matches(text, search.value);
      none.hidden = rows.some(({ row }) => !row.hidden);
    }

    function pickFirst(event) {
      if (event.key !== "Enter") return;
      event.preventDefault();
      const first = rows.find(({ row }) => !row.hidden);
      if (search.value.trim() && first) toggle(first.option, true);
    }

    function chip(option) {
      const button = element("button", { type: "button", title: `Remove ${option}` }, tables.shortName(option), " ×");
      button.setAttribute("aria-label", `Remove ${option}`);
      button.addEventListener("click", () => {
        toggle(option, false);
        (chosen.querySelector("button") || search).focus();
      });
      return element("li", {}, button);
    }

    search.addEventListener("input", filter);
    search.addEventListener("keydown", pickFirst);
    return (shown) => {
      names = shown;
      for (const { box, option } of rows) box.checked = names.includes(option);
      chosen.replaceChildren(...names.map(chip));
    };
  }

  return { make };
})();
