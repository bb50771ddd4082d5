// The clipped objective of one sample, as a function of the probability ratio. Twin: ppo_edu.teach.explore.clip.
"use strict";

Explorable.mount("clip", (figure) => {
  const { make, draw, show, scale, path } = Explorable;
  const { state, root } = figure;
  const MEANING = [
    "A = 0: nothing to learn from this sample",
    "A > 0, ratio below the interval: the gradient pulls it back up",
    "A > 0, ratio inside the interval: the gradient pushes it up",
    "A > 0, ratio above the interval: clipped, no gradient",
    "A < 0, ratio below the interval: clipped, no gradient",
    "A < 0, ratio inside the interval: the gradient pushes it down",
    "A < 0, ratio above the interval: the gradient pushes it back down",
  ];

  const objective = (ratio) => {
    const clipped = Math.min(Math.max(ratio, 1 - state.epsilon), 1 + state.epsilon);
    return Math.min(ratio * state.advantage, clipped * state.advantage);
  };

  root.append(make("p", { class: "x-title", html: "The clipped objective of one sample" }));
  const controls = figure.group("controls", "Settings of the clipped objective");
  figure.range(controls, "ratio", "ratio <i>ρ</i>", { min: 0.02, max: 2, step: 0.01, value: 1.5 });
  figure.range(controls, "advantage", "advantage <i>A</i>", { min: -1.5, max: 1.5, step: 0.1, value: 1, digits: 1 });
  figure.range(controls, "epsilon", "clip range <i>ε</i>", { min: 0.05, max: 0.5, step: 0.01, value: 0.2 });

  const label = "Objective against probability ratio, with the clip interval shaded and the sample marked; its numbers stand below.";
  const left = 40, right = 12, top = 10, height = 270, bottom = height - 38;
  const frame = figure.group("plot", "Plot");
  frame.append(make("div", {
    class: "x-legend",
    html: `<span><span class="x-key" style="color: var(--x-blue)"></span>min(<i>ρA</i>, clip(<i>ρ</i>)<i>A</i>)</span>
      <span><span class="x-key x-dashed" style="color: var(--x-grey)"></span><i>ρA</i>, without a clip</span>`,
  }));
  const svg = figure.plot(frame, label, height, (svg, width) => {
    const { epsilon, advantage, ratio } = state;
    const x = scale(0, 2, left, width - right);
    const [low, high] = advantage < 0 ? [-3.1, 0.3] : [-0.3, 3.1];
    const y = scale(low, high, bottom, top);
    const colour = (name) => `var(--x-${name})`;
    svg.append(draw("rect", {
      x: x(1 - epsilon), y: top, width: x(1 + epsilon) - x(1 - epsilon), height: bottom - top, fill: colour("blue"), opacity: 0.13,
    }));
    for (let tick = Math.ceil(low); tick <= high; tick++) {
      svg.append(draw("path", { class: tick ? "x-grid" : "x-axis", d: `M${left} ${y(tick)}H${width - right}` }));
      svg.append(draw("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, show(tick, 0)));
    }
    for (const tick of [0, 0.5, 1, 1.5, 2]) {
      svg.append(draw("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, String(tick)));
    }
    svg.append(draw("text", { x: (left + width - right) / 2, y: bottom + 33, "text-anchor": "middle" }, "probability ratio ρ"));
    svg.append(draw("path", {
      d: path([[x(0), y(0)], [x(2), y(2 * advantage)]]), stroke: colour("grey"), "stroke-width": 1.5, "stroke-dasharray": "5 4", fill: "none",
    }));
    const corners = [0, 1 - epsilon, 1 + epsilon, 2].map((each) => [x(each), y(objective(each))]);
    svg.append(draw("path", { d: path(corners), stroke: colour("blue"), "stroke-width": 3, fill: "none", "stroke-linejoin": "round" }));
    svg.append(draw("path", { class: "x-axis", d: `M${x(ratio)} ${y(0)}V${y(objective(ratio))}`, "stroke-dasharray": "2 3" }));
    svg.append(draw("circle", { cx: x(ratio), cy: y(objective(ratio)), r: 7, fill: colour("red"), stroke: colour("ground"), "stroke-width": 2 }));
  });

  // The plot can be dragged, too.
  const drag = (event) => {
    if (event.buttons !== 1) return;
    const box = svg.getBoundingClientRect();
    figure.set({ ratio: scale(left, box.width - right, 0, 2)(event.clientX - box.left) });
  };
  svg.addEventListener("pointerdown", (event) => {
    svg.setPointerCapture(event.pointerId);
    drag(event);
  });
  svg.addEventListener("pointermove", drag);
  svg.style.cssText = "touch-action: pan-y; cursor: ew-resize";

  const says = make("p", { class: "x-says", role: "status" });
  const entries = { unclipped: "<i>ρA</i>", clipped: "clip(<i>ρ</i>)<i>A</i>", objective: "objective", slope: "slope in <i>ρ</i>", gradient: "slope in log <i>π</i>" };
  const outputs = {};
  const list = make("dl", { class: "x-numbers simple" });
  for (const [name, text] of Object.entries(entries)) {
    outputs[name] = make("dd");
    list.append(make("div", {}, make("dt", { html: text }), outputs[name]));
  }
  const table = make("table", {
    html: `<thead><tr><th scope="col"></th><th scope="col"><i>ρ</i> below</th><th scope="col">inside</th><th scope="col">above</th></tr></thead>
      <tbody><tr><th scope="row"><i>A</i> &gt; 0</th><td>pulls back up</td><td>pushes up</td><td>clipped: 0</td></tr>
      <tr><th scope="row"><i>A</i> &lt; 0</th><td>clipped: 0</td><td>pushes down</td><td>pulls back down</td></tr></tbody>`,
  });
  const cells = [...table.querySelectorAll("td")];
  root.append(list, says, table);

  return ({ epsilon, advantage, ratio }) => {
    const side = ratio < 1 - epsilon - 1e-9 ? 0 : ratio > 1 + epsilon + 1e-9 ? 2 : 1;
    const which = advantage === 0 ? 0 : (advantage > 0 ? 1 : 4) + side;
    const clippedRatio = Math.min(Math.max(ratio, 1 - epsilon), 1 + epsilon);
    const slope = which === 3 || which === 4 ? 0 : advantage;
    const numbers = {
      unclipped: ratio * advantage, clipped: clippedRatio * advantage, objective: objective(ratio), slope, gradient: slope * ratio, case: which,
    };
    for (const name of Object.keys(outputs)) outputs[name].textContent = show(numbers[name]);
    says.textContent = `${MEANING[which]}.`;
    cells.forEach((cell, i) => (i + 1 === which ? cell.setAttribute("aria-current", "true") : cell.removeAttribute("aria-current")));
    return { ...numbers, meaning: MEANING[which] };
  };
});
