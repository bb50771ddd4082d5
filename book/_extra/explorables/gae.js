// GAE on eight steps with a termination and a truncation. Twin: ppo_edu.teach.explore.gae.
"use strict";

Explorable.mount("gae", (figure) => {
  const { make, draw, show, scale } = Explorable;
  const { state, root } = figure;
  const REWARDS = [1, 0, 2, 0, 0, 1, 0, 2];
  const VALUES = [2, 1, 3, 1, 2, 3, 1, 2];
  const NEXT_VALUES = [1, 3, NaN, 2, 3, 4, 2, 1]; // of the true successor; none after a termination
  const TERMINATED = 2, TRUNCATED = 5; // rows
  const T = REWARDS.length;
  const ends = (t) => t === TERMINATED || t === TRUNCATED || t === T - 1;

  const compute = ({ gamma, lam }) => {
    const residuals = REWARDS.map((r, t) => r + (t === TERMINATED ? 0 : gamma * NEXT_VALUES[t]) - VALUES[t]);
    const weights = REWARDS.map((_, t) => {
      const row = new Array(T).fill(0);
      for (let k = t, weight = 1; ; k++, weight *= gamma * lam) {
        row[k] = weight;
        if (ends(k)) return row;
      }
    });
    const advantages = weights.map((row) => row.reduce((sum, weight, k) => sum + weight * residuals[k], 0));
    return { residuals, weights, advantages };
  };

  root.append(make("p", { class: "x-title", html: "Advantages of eight steps" }));
  const controls = figure.group("controls", "Settings of the advantage estimate");
  figure.range(controls, "gamma", "discount <i>γ</i>", { min: 0, max: 1, step: 0.01, value: 0.9 });
  figure.range(controls, "lam", "trace <i>λ</i>", { min: 0, max: 1, step: 0.01, value: 0.8 });
  figure.range(controls, "step", "weights of step <i>t</i>", { min: 0, max: T - 1, step: 1, value: 0, digits: 0 });

  const left = 30, right = 4, rows = 20, band = 104, gap = 26, top = 4 * rows + 14;
  const height = top + 3 * (band + gap) + 4;
  const label = "Rewards and values of eight steps, TD residuals, their weights in one advantage, and the advantages; the numbers are listed below.";
  const frame = figure.group("plot", "Plot");
  const svg = figure.plot(frame, label, height, (svg, width) => {
    const { residuals, weights, advantages } = figure.numbers;
    const column = (width - left - right) / T;
    const middle = (t) => left + (t + 0.5) * column;
    const text = (x, y, content, more = {}) => svg.append(draw("text", { x, y, "text-anchor": "middle", ...more }, content));

    const last = [TERMINATED, TRUNCATED, T - 1].find((end) => end >= state.step);
    svg.append(draw("rect", {
      x: left + state.step * column, y: 0, width: column * (last - state.step + 1), height, fill: "var(--x-green)", opacity: 0.09,
    }));
    const names = ["t", "r", "V", "V′"];
    names.forEach((name, i) => text(left / 2 - 2, (i + 1) * rows - 4, name, { "font-style": "italic" }));
    for (let t = 0; t < T; t++) {
      const shown = [t, REWARDS[t], VALUES[t], Number.isNaN(NEXT_VALUES[t]) ? "none" : NEXT_VALUES[t]];
      shown.forEach((content, i) => text(middle(t), (i + 1) * rows - 4, content, i ? {} : { "font-weight": t === state.step ? 700 : 400 }));
    }
    const lines = [[TERMINATED, "terminated", "none"], [TRUNCATED, "truncated", "2 4"]];
    for (const [row, name] of lines) text(left + (row + 1) * column, top, name);
    const bands = [
      ["TD residuals δ", residuals, -2.95, 2.95, "blue"],
      [`weights in the advantage of step ${state.step}`, weights[state.step], 0, 1.35, "green"],
      ["advantages Â", advantages, -3.4, 5.2, "red"],
    ];
    bands.forEach(([title, numbers, low, high, colour], i) => {
      const from = top + i * (band + gap) + gap, y = scale(low, high, from + band, from);
      text(left, from - 6, title, { "text-anchor": "start", "font-weight": 600 });
      svg.append(draw("path", { class: "x-axis", d: `M${left} ${y(0)}H${width - right}` }));
      for (const [row, , dash] of lines) {
        const d = `M${left + (row + 1) * column} ${i ? from : from - 20}V${from + band}`;
        svg.append(draw("path", { d, stroke: "var(--x-text)", "stroke-width": 1.5, "stroke-dasharray": dash, fill: "none" }));
      }
      numbers.forEach((number, t) => {
        if (i === 1 && number === 0) return;
        const high = Math.min(y(0), y(number));
        svg.append(draw("rect", {
          x: middle(t) - column * 0.3, y: high, width: column * 0.6, height: Math.abs(y(number) - y(0)), fill: `var(--x-${colour})`,
        }));
        text(middle(t), number < 0 ? y(number) + 13 : high - 4, show(number), { style: `font-size: ${column < 44 ? 11 : 12.5}px` });
      });
    });
  });
  svg.addEventListener("pointerdown", (event) => {
    const box = svg.getBoundingClientRect();
    const step = Math.floor(scale(left, box.width - right, 0, T)(event.clientX - box.left));
    if (step >= 0 && step < T) figure.set({ step });
  });

  const says = make("p", { class: "x-says", role: "status" });
  root.append(says);

  return (state) => {
    const numbers = compute(state);
    const row = numbers.weights[state.step];
    const terms = row.flatMap((weight, k) => (k >= state.step && weight ? [`${show(weight)} · ${show(numbers.residuals[k]).replace(/^−(.*)/, "(−$1)")}`] : []));
    says.textContent = `Advantage of step ${state.step}: ${terms.join(" + ")} = ${show(numbers.advantages[state.step])}`;
    return numbers;
  };
});
