// Three estimators of KL(p || q) as samples of p arrive. Twin: ppo_edu.teach.explore.kl.
"use strict";

Explorable.mount("kl", (figure) => {
  const { make, draw, show, scale, path } = Explorable;
  const { state, root } = figure;
  const MOST = 2000;
  const KINDS = { k1: "blue", k2: "red", k3: "green" };
  const OUTCOMES = ["a", "b", "c"];
  const PRESETS = {
    "close": [[1, 0, -1], [0, 0, 0]],
    "far": [[2, 0, -1], [-1, 0, 1]],
    "rare outcome": [[0, 0, -4], [0, 0, 1]],
    "equal": [[1, 0, -1], [1, 0, -1]],
  };

  // mulberry32, the same in Python, bit for bit.
  const uniforms = (seed, n) => {
    let a = seed | 0;
    return Array.from({ length: n }, () => {
      a = (a + 0x6d2b79f5) | 0;
      let t = Math.imul(a ^ (a >>> 15), a | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    });
  };

  const logSoftmax = (logits) => {
    const most = Math.max(...logits);
    const logSum = most + Math.log(logits.reduce((sum, x) => sum + Math.exp(x - most), 0));
    return logits.map((x) => x - logSum);
  };

  const compute = () => {
    const logits = ["p", "q"].map((name) => OUTCOMES.map((outcome) => state[name + outcome]));
    const [logP, logQ] = logits.map(logSoftmax);
    const [p, q] = [logP, logQ].map((all) => all.map(Math.exp));
    const logRatio = logP.map((x, i) => logQ[i] - x);
    const each = {
      k1: logRatio.map((d) => -d),
      k2: logRatio.map((d) => 0.5 * d * d),
      k3: logRatio.map((d) => Math.expm1(d) - d),
    };
    const mean = (numbers) => numbers.reduce((sum, x, i) => sum + p[i] * x, 0);
    const samples = uniforms(state.seed, state.n).map((u) => (u < p[0] ? 0 : u < p[0] + p[1] ? 1 : 2));
    const numbers = { p, q, exact: mean(each.k1), samples, expectation: {}, spread: {} };
    for (const kind of Object.keys(KINDS)) {
      const expected = mean(each[kind]);
      numbers.expectation[kind] = expected;
      numbers.spread[kind] = Math.sqrt(mean(each[kind].map((x) => (x - expected) ** 2)));
      let sum = 0;
      numbers[kind] = samples.map((outcome, i) => (sum += each[kind][outcome]) / (i + 1));
    }
    return numbers;
  };

  root.append(make("p", { class: "x-title", html: "KL(<i>p</i> ‖ <i>q</i>) from samples of <i>p</i>" }));
  const presets = figure.group("buttons", "Choose two distributions");
  const buttons = Object.entries(PRESETS).map(([name, logits]) =>
    figure.button(presets, name, () => ["p", "q"].forEach((which, i) => OUTCOMES.forEach((outcome, j) => figure.setters[which + outcome](logits[i][j])))));
  const pair = figure.group("pair", "Logits");
  for (const [i, which] of ["p", "q"].entries()) {
    const column = make("div");
    OUTCOMES.forEach((outcome, j) =>
      figure.range(column, which + outcome, `logit <i>${which}</i>(${outcome})`, { min: -4, max: 4, step: 0.1, value: PRESETS.close[i][j], digits: 1 }));
    pair.append(column);
  }

  const colour = (name) => `var(--x-${name})`;
  const key = (name) => `<span class="x-key" style="color: ${colour(name)}"></span>`;
  const frame = figure.group("plot", "Plots");
  frame.append(make("div", { class: "x-legend", html: `<span>${key("blue")}<i>p</i></span><span>${key("grey")}<i>q</i></span>` }));
  figure.plot(frame, "Bars: the probabilities of the outcomes a, b and c under p and q.", 112, (svg, width) => {
    const bottom = 90, y = scale(0, 1, bottom, 16);
    const third = width / 3, wide = Math.min(third * 0.34, 52);
    OUTCOMES.forEach((outcome, i) => {
      for (const [side, name, fill] of [[-1, "p", "blue"], [1, "q", "grey"]]) {
        const probability = figure.numbers[name][i];
        const x = third * (i + 0.5) + (side < 0 ? -wide - 1 : 1);
        svg.append(draw("rect", { x, y: y(probability), width: wide, height: bottom - y(probability), fill: colour(fill) }));
        svg.append(draw("text", { x: x + wide / 2, y: y(probability) - 4, "text-anchor": "middle" }, show(probability)));
      }
      svg.append(draw("text", { x: third * (i + 0.5), y: bottom + 17, "text-anchor": "middle" }, outcome));
    });
    svg.append(draw("path", { class: "x-axis", d: `M0 ${bottom}H${width}` }));
  });
  const label = "Running means of k1, k2 and k3 against the number of samples, on a logarithmic axis, and the exact divergence; the numbers stand below.";
  figure.plot(frame, label, 250, (svg, width) => {
    const numbers = figure.numbers, n = state.n;
    const left = 44, right = 12, top = 12, bottom = 210;
    const all = Object.keys(KINDS).flatMap((kind) => numbers[kind]);
    const low = Math.min(0, ...all), high = Math.max(0.05, numbers.exact, ...all);
    const room = (high - low) * 0.06;
    const x = scale(0, Math.log(Math.max(n, 10)), left, width - right);
    const y = scale(low - room, high + room, bottom, top);
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50].find((each) => (high - low) / each <= 6) || 100;
    for (let tick = Math.ceil((low - room) / step); tick * step <= high + room; tick++) {
      svg.append(draw("path", { class: tick ? "x-grid" : "x-axis", d: `M${left} ${y(tick * step)}H${width - right}` }));
      svg.append(draw("text", { x: left - 8, y: y(tick * step) + 4, "text-anchor": "end" }, show(tick * step, step < 0.1 ? 2 : step < 1 ? 1 : 0)));
    }
    for (let tick = 1; tick <= Math.max(n, 10); tick *= 10) {
      svg.append(draw("text", { x: x(Math.log(tick)), y: bottom + 17, "text-anchor": "middle" }, String(tick)));
    }
    svg.append(draw("text", { x: (left + width - right) / 2, y: bottom + 35, "text-anchor": "middle" }, "samples (logarithmic)"));
    for (const [kind, name] of Object.entries(KINDS)) {
      const points = numbers[kind].map((mean, i) => [x(Math.log(i + 1)), y(mean)]);
      svg.append(draw("path", { d: path(points), stroke: colour(name), "stroke-width": 2, fill: "none", "stroke-linejoin": "round" }));
      const [cx, cy] = points[points.length - 1];
      svg.append(draw("circle", { cx, cy, r: 4, fill: colour(name) }));
    }
    const exact = y(numbers.exact);
    svg.append(draw("path", { d: `M${left} ${exact}H${width - right}`, stroke: colour("text"), "stroke-width": 1.5, "stroke-dasharray": "6 4", fill: "none" }));
  });

  const sampling = figure.group("buttons", "Samples");
  const counter = make("span", { role: "status" });
  sampling.append(counter);
  state.n = 100;
  state.seed = 1;
  for (const more of [1, 10, 100]) figure.button(sampling, `+${more}`, () => (state.n = Math.min(state.n + more, MOST)));
  figure.button(sampling, "other samples", () => (state.seed += 1));
  figure.button(sampling, "back to 1", () => (state.n = 1));

  const table = make("table", {
    html: `<thead><tr><th scope="col">in nats</th><th scope="col">mean so far</th><th scope="col">true mean</th><th scope="col">spread</th></tr></thead><tbody></tbody>`,
  });
  const outputs = {};
  for (const [kind, name] of Object.entries(KINDS)) {
    outputs[kind] = [make("td"), make("td"), make("td")];
    const head = make("th", { scope: "row", html: `${key(name)}<i>k</i><sub>${kind[1]}</sub>` });
    table.tBodies[0].append(make("tr", {}, head, ...outputs[kind]));
  }
  const says = make("p", { class: "x-says" });
  root.append(table, says);

  return () => {
    const numbers = compute();
    for (const kind of Object.keys(KINDS)) {
      [numbers[kind][state.n - 1], numbers.expectation[kind], numbers.spread[kind]].forEach((x, i) => (outputs[kind][i].textContent = show(x, 3)));
    }
    counter.textContent = `${state.n} sample${state.n === 1 ? "" : "s"}`;
    says.innerHTML = `Dashed: the exact divergence, ${show(numbers.exact, 3)} nats. Spread: standard deviation of one sample.`;
    Object.values(PRESETS).forEach((logits, i) => {
      const chosen = ["p", "q"].every((which, k) => OUTCOMES.every((outcome, j) => state[which + outcome] === logits[k][j]));
      buttons[i].setAttribute("aria-pressed", chosen);
    });
    return numbers;
  };
});
