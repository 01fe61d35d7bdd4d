// How old the trained tokens are: a histogram of the whole run, and the same over steps.

const lagNames = (count, folded) => Array.from({ length: count }, (_, lag) => `${lag}${folded && lag === count - 1 ? "+" : ""}`);

function stalenessHistogram(parent) {
  const counts = rl.staleness;
  const { legend, body } = card(parent, "chart-staleness-histogram", "Staleness of trained tokens", { hint: "steps between the version that wrote a token and the one trained on it; the outline is the step under the cursor" });
  if (!rl.step.length || !counts) return body.append(make("div", { class: "empty" }, "no histogram logged"));
  const lags = counts[0].length, names = lagNames(lags, lags === 32);
  const shares = (row) => { const sum = row.reduce((a, b) => a + b, 0); return row.map((v) => (sum ? v / sum : 0)); };
  const whole = shares(names.map((_, lag) => counts.reduce((sum, row) => sum + row[lag], 0)));
  const mean = (share) => share.reduce((sum, s, lag) => sum + s * lag, 0);
  const read = readouts(legend, [{ name: "mean", color: "var(--c4)" }], (_, i) => mean(i === null ? whole : shares(counts[i])).toFixed(2));
  let follow = () => {};
  cursors.get(rl).push((index) => { follow(index); read(index); });
  read(null);
  onWidth(body, (width) => {
    body.replaceChildren();
    const height = 190, top = Math.max(...whole) * 1.12;
    const svg = draw(body, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    const slot = (width - MARGIN.left - MARGIN.right) / lags;
    const y = (share) => height - MARGIN.bottom - (Math.min(share, top) / top) * (height - MARGIN.top - MARGIN.bottom);
    for (const value of ticks(0, top, 4)) {
      draw(svg, "line", { class: "gridline", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) });
      draw(svg, "text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, percent(value));
    }
    const outlines = whole.map((share, lag) => {
      const x = MARGIN.left + lag * slot, inner = Math.min(slot * 0.72, 90), left = x + (slot - inner) / 2;
      draw(svg, "rect", { x: left, y: y(share), width: inner, height: height - MARGIN.bottom - y(share), rx: 3, fill: "var(--c4)", opacity: 0.85 });
      if (share >= 0.001 && slot > 34) draw(svg, "text", { class: "value", x: x + slot / 2, y: y(share) - 5, "text-anchor": "middle" }, percent(share));
      draw(svg, "text", { x: x + slot / 2, y: height - 6, "text-anchor": "middle" }, slot > 16 || lag % 4 === 0 ? names[lag] : "");
      const area = draw(svg, "rect", { x, y: 0, width: slot, height, fill: "transparent" });
      area.addEventListener("mousemove", (event) => showTooltip(event, ...tipTable(`staleness ${names[lag]}`, [["of all trained tokens", percent(share), "var(--c4)"]])));
      area.addEventListener("mouseleave", hideTooltip);
      return draw(svg, "rect", { x: left - 2, width: inner + 4, rx: 4, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5, visibility: "hidden", "pointer-events": "none" });
    });
    follow = (index) => {
      const step = index === null ? null : shares(counts[index]);
      outlines.forEach((outline, lag) => {
        outline.setAttribute("visibility", step && step[lag] > 0 ? "visible" : "hidden");
        if (step) { outline.setAttribute("y", y(step[lag]) - 2); outline.setAttribute("height", height - MARGIN.bottom - y(step[lag]) + 2); }
      });
    };
  });
}

// A heat map: columns are steps, rows are lags, the darker the larger the share; its mean is a line on top.
function stalenessOverSteps(parent) {
  const counts = rl.staleness;
  const lines = [{ name: "mean", values: rl.staleness_mean, color: "var(--c4)", raw: true }, { name: "oldest", values: rl.staleness_max, color: "var(--c6)", raw: true }];
  if (!counts) return lineChart(parent, "chart-staleness", "Staleness over steps", rl, lines, { zero: true });
  const { legend, body } = card(parent, "chart-staleness", "Staleness over steps", { hint: "share of each step's tokens at each age (shaded), with the mean and the oldest" });
  if (!rl.step.length) return body.append(make("div", { class: "empty" }, "nothing logged yet"));
  const read = readouts(legend, lines, (s, i) => number(i === null ? lastKnown(s.values) : s.values[i]));
  let follow = () => {};
  cursors.get(rl).push((index) => { follow(index); read(index); });
  read(null);
  const lags = counts[0].length, height = 190;
  onWidth(body, (width) => {
    const shape = frame(body, rl, width, height, -0.5, lags - 0.5, rl.step[0] - 0.5);
    const { svg, x, y, first, last } = shape;
    const edge = (i) => x(i === 0 ? first : i === rl.step.length ? last : (rl.step[i - 1] + rl.step[i]) / 2);
    const cells = draw(svg, "g", { fill: "var(--c4)", "shape-rendering": "crispEdges" });
    counts.forEach((row, i) => {
      const sum = row.reduce((a, b) => a + b, 0) || 1;
      row.forEach((count, lag) => {
        if (count) draw(cells, "rect", { x: edge(i).toFixed(1), y: y(lag + 0.5).toFixed(1), width: (edge(i + 1) - edge(i)).toFixed(1), height: (y(0) - y(1)).toFixed(1), opacity: (0.08 + 0.5 * (count / sum)).toFixed(2) });
      });
    });
    for (const s of lines) draw(svg, "path", { d: path(rl, s.values, x, y), fill: "none", stroke: s.color, "stroke-width": s.name === "mean" ? 2 : 1.2, "stroke-linejoin": "round" });
    const tip = (i) => [...lines.map((s) => [s.name, number(s.values[i]), s.color]), ...counts[i].map((c, lag) => [`staleness ${lag}`, `${c.toLocaleString("en-US")} tokens`]).filter((_, lag) => counts[i][lag])];
    follow = track(shape, rl, width, height, tip, () => {});
  });
}
