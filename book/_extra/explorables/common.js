// What the interactive figures share: controls, plots that follow the width of the page, numbers.
// A figure stands where a page has <div class="explorable" data-explorable="NAME"></div>. Its Python twin is
// ppo_edu.teach.explore.NAME; element.explorable.numbers() gives what is shown, element.explorable.set({...}) sets controls.
"use strict";

const Explorable = (() => {
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "html") element.innerHTML = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };

  const draw = (tag, attributes = {}, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // Two decimals, a true minus sign, no minus zero.
  const show = (x, digits = 2) => {
    const text = x.toFixed(digits);
    return Number(text) === 0 ? (0).toFixed(digits) : text.replace("-", "\u2212");
  };

  const scale = (low, high, from, to) => (x) => from + ((x - low) / (high - low)) * (to - from);

  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");

  let count = 0;

  class Figure {
    constructor(root) {
      this.root = root;
      this.state = {};
      this.setters = {};
      this.drawings = [];
      root.replaceChildren();
    }

    // A labelled range input; `label` is HTML.
    range(parent, name, label, { min, max, step, value, digits = 2 }) {
      const id = `explorable-${++count}`;
      const input = make("input", { type: "range", id, min, max, step, value, "data-name": name });
      const output = make("output", { for: id });
      const set = (x) => {
        input.value = x;
        this.state[name] = Number(input.value);
        output.textContent = show(this.state[name], digits);
        input.setAttribute("aria-valuetext", output.textContent);
      };
      input.addEventListener("input", () => {
        set(input.value);
        this.update();
      });
      this.setters[name] = set;
      set(value);
      parent.append(make("div", { class: "x-range" }, make("label", { for: id, html: label }), input, output));
    }

    button(parent, label, action) {
      const button = make("button", { type: "button" });
      button.textContent = label;
      button.addEventListener("click", () => {
        action();
        this.update();
      });
      parent.append(button);
      return button;
    }

    group(name, label) {
      const group = make("div", { class: `x-${name}`, role: "group", "aria-label": label });
      this.root.append(group);
      return group;
    }

    // An SVG as wide as its parent; `paint(svg, width)` fills it, at every change and every new width.
    plot(parent, label, height, paint) {
      const svg = draw("svg", { role: "img", "aria-label": label, height });
      parent.append(svg);
      this.drawings.push(() => {
        const width = Math.max(svg.clientWidth, 200);
        svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
        svg.replaceChildren();
        paint(svg, width);
      });
      new ResizeObserver(() => this.drawings.forEach((each) => each())).observe(parent);
      return svg;
    }

    set(values) {
      for (const [name, value] of Object.entries(values)) {
        if (this.setters[name]) this.setters[name](value);
        else this.state[name] = value;
      }
      this.update();
    }

    update() {
      this.compute();
      this.drawings.forEach((each) => each());
    }
  }

  // `build(figure)` adds controls and plots and returns compute(), which gives an object of numbers.
  const mount = (name, build) => {
    for (const root of document.querySelectorAll(`[data-explorable="${name}"]`)) {
      const figure = new Figure(root);
      const compute = build(figure);
      figure.compute = () => (figure.numbers = compute(figure.state));
      root.explorable = { numbers: () => figure.numbers, set: (values) => figure.set(values) };
      figure.update();
    }
  };

  return { make, draw, show, scale, path, mount };
})();
