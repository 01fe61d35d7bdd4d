// Charts over training steps: lines and stacks.

const MARGIN = { left: 46, right: 14, top: 10, bottom: 24 };

// The steps in which a role died or the whole run was resumed.
function faultSteps(table) {
  const faults = data.timeline.events.filter((event) => event.kind === "death" || event.kind === "start");
  if (!table.step || table.step.length < 2) return [];
  const last = table.time.length - 1;
  return faults.filter((f) => f.time >= table.time[0] && f.time <= table.time[last] + 1).map((f) => table.step[nearest(table.time, f.time)]);
}

// The frame of a chart: scales, grid, axis labels, faults. `top` and `bottom` bound the values.
function frame(body, table, width, height, bottom, top, firstStep) {
  body.replaceChildren();
  const svg = draw(body, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  const first = firstStep, last = Math.max(table.step[table.step.length - 1], first + 1);
  const x = (step) => MARGIN.left + ((step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - bottom) / (top - bottom || 1)) * (height - MARGIN.top - MARGIN.bottom);
  const rows = ticks(bottom, top, height > 200 ? 5 : 4);
  for (const value of rows) {
    draw(svg, "line", { class: "gridline", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) });
    draw(svg, "text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, tickLabel(value, rows.length > 1 ? rows[1] - rows[0] : 1));
  }
  for (const step of ticks(first, last, Math.max(2, Math.floor(width / 95))).filter(Number.isInteger)) draw(svg, "text", { x: x(step), y: height - 6, "text-anchor": "middle" }, tickLabel(step, 1));
  for (const step of new Set(faultSteps(table))) draw(svg, "line", { class: "fault", x1: x(step), x2: x(step), y1: MARGIN.top, y2: height - MARGIN.bottom });
  return { svg, x, y, first, last };
}

// Follows the pointer over a chart, and the shared cursor. `tip(index)` gives rows of the tooltip.
function track(shape, table, width, height, tip, mark) {
  const { svg, x, first, last } = shape;
  const line = draw(svg, "line", { class: "cursor", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  const area = draw(svg, "rect", { x: MARGIN.left, y: 0, width: Math.max(1, width - MARGIN.left - MARGIN.right), height, fill: "transparent" });
  area.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width) * width - MARGIN.left;
    const index = nearest(table.step, first + (share / (width - MARGIN.left - MARGIN.right)) * (last - first));
    moveCursor(table, index);
    showTooltip(event, ...tipTable(stepTitle(table, index), tip(index)));
  });
  area.addEventListener("mouseleave", () => { moveCursor(table, null); hideTooltip(); });
  return (index) => {
    line.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (index !== null) { line.setAttribute("x1", x(table.step[index])); line.setAttribute("x2", x(table.step[index])); }
    mark(index);
  };
}

// A legend whose numbers are those of the cursor's step, or of the newest one.
function readouts(legend, series, shown) {
  legend.replaceChildren();
  const values = series.map((s) => {
    const value = make("b");
    legend.append(make("span", {}, make("i", { class: s.dots ? "dot" : s.block ? "block" : "", style: `--key:${s.color}` }), s.name, value));
    return value;
  });
  return (index) => values.forEach((value, i) => (value.textContent = shown(series[i], index)));
}
function lastKnown(values) {
  for (let i = values.length - 1; i >= 0; i--) if (known(values[i])) return values[i];
  return null;
}

// Mean over neighbouring points, so that the trend shows through the noise.
function smooth(values) {
  const half = Math.floor(values.length / 40);
  if (half < 1) return values;
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter(known);
    return near.length ? near.reduce((a, b) => a + b) / near.length : null;
  });
}

function path(table, values, x, y) {
  let text = "", pen = false;
  values.forEach((value, i) => {
    if (!known(value)) { pen = false; return; }
    text += `${pen ? "L" : "M"}${x(table.step[i]).toFixed(1)},${y(value).toFixed(1)}`;
    pen = true;
  });
  return text;
}

// series: {name, values, color, raw?: no smoothing, points?: [{step, value}] in place of values}
function lineChart(parent, id, title, table, series, { hint, span, zero = false, height = 190, format = number } = {}) {
  const { legend, body } = card(parent, id, title, { hint, span });
  const drawn = series.filter((s) => (s.points ? s.points.length : s.values && s.values.some(known)));
  if (!table.step.length || !drawn.length) return body.append(make("div", { class: "empty" }, "nothing logged yet"));
  const lines = drawn.filter((s) => !s.points);
  const all = drawn.flatMap((s) => (s.points ? s.points.map((p) => p.value) : s.values.filter(known)));
  let low = Math.min(...all), high = Math.max(...all);
  if (zero) { low = Math.min(low, 0); high = Math.max(high, 0); }
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  const bottom = zero && low === 0 ? 0 : low - pad, top = high + (lines.length < drawn.length ? 2 * pad : pad); // labels of points want room
  const firstStep = Math.min(table.step[0], ...drawn.flatMap((s) => (s.points || []).map((p) => p.step)));
  for (const s of lines) s.smoothed = s.raw ? s.values : smooth(s.values);
  const read = readouts(legend, drawn.map((s) => ({ ...s, dots: s.points })), (s, i) => {
    if (s.points) return format(s.points[s.points.length - 1].value);
    return format(i === null ? lastKnown(s.smoothed) : s.values[i]);
  });
  let follow = () => {};
  cursors.get(table).push((index) => { follow(index); read(index); });
  read(null);
  onWidth(body, (width) => {
    const shape = frame(body, table, width, height, bottom, top, firstStep);
    for (const s of lines) drawLine(shape, table, s, lines.length === 1, height);
    for (const s of drawn.filter((each) => each.points)) drawPoints(shape, s, height, format, (step) => lines.length && lines[0].smoothed[nearest(table.step, step)]);
    const dots = lines.map((s) => draw(shape.svg, "circle", { r: 3.5, fill: s.color, stroke: "var(--card)", "stroke-width": 1.5, visibility: "hidden" }));
    const tip = (i) => [
      ...lines.map((s) => [s.name, format(s.values[i]), s.color]),
      ...drawn.filter((s) => s.points).flatMap((s) => s.points.filter((p) => p.step === table.step[i]).map((p) => [s.name, format(p.value), s.color])),
    ];
    follow = track(shape, table, width, height, tip, (index) => dots.forEach((dot, k) => {
      const value = index === null ? null : lines[k].values[index];
      dot.setAttribute("visibility", known(value) ? "visible" : "hidden");
      if (known(value)) { dot.setAttribute("cx", shape.x(table.step[index])); dot.setAttribute("cy", shape.y(value)); }
    }));
  });
}

function drawLine({ svg, x, y }, table, s, fill, height) {
  const trend = path(table, s.smoothed, x, y);
  if (fill && s.smoothed.every(known) && s.smoothed.length > 1) {
    const floor = height - MARGIN.bottom;
    draw(svg, "path", { d: `${trend}L${x(table.step[table.step.length - 1])},${floor}L${x(table.step[0])},${floor}Z`, fill: s.color, opacity: 0.07 });
  }
  if (s.smoothed !== s.values) draw(svg, "path", { d: path(table, s.values, x, y), fill: "none", stroke: s.color, "stroke-width": 1, opacity: 0.32 });
  draw(svg, "path", { d: trend, fill: "none", stroke: s.color, "stroke-width": 2, "stroke-linejoin": "round", "stroke-linecap": "round" });
  if (s.values.filter(known).length < 4) s.values.forEach((v, i) => known(v) && draw(svg, "circle", { cx: x(table.step[i]), cy: y(v), r: 3, fill: s.color }));
}

// Labels of the first and the last point keep clear of the line whose value at a step is `beside(step)`.
function drawPoints({ svg, x, y }, s, height, format, beside) {
  draw(svg, "path", { d: s.points.map((p, i) => `${i ? "L" : "M"}${x(p.step)},${y(p.value)}`).join(""), fill: "none", stroke: s.color, "stroke-width": 1.5, "stroke-dasharray": "1 4", "stroke-linecap": "round" });
  s.points.forEach((p, i) => {
    draw(svg, "circle", { cx: x(p.step), cy: y(p.value), r: 5, fill: s.color, stroke: "var(--card)", "stroke-width": 2 });
    const below = p.value < beside(p.step) && y(p.value) + 24 < height - MARGIN.bottom;
    if (i === 0 || i === s.points.length - 1) draw(svg, "text", { class: "value", x: x(p.step) + (i || s.points.length === 1 ? -4 : 8), y: y(p.value) + (below ? 21 : -10), "text-anchor": i ? "end" : "start" }, format(p.value));
  });
}

// parts: {name, values, color}, drawn on top of each other; what towers above the rest is cut off, with a mark.
function stackChart(parent, id, title, table, parts, { hint, height = 200 } = {}) {
  const { legend, body } = card(parent, id, title, { hint });
  const drawn = parts.filter((p) => p.values && p.values.some((v) => v > 0));
  if (!table.step.length || !drawn.length) return body.append(make("div", { class: "empty" }, "nothing logged yet"));
  const sums = table.step.map((_, i) => drawn.reduce((sum, p) => sum + (p.values[i] || 0), 0));
  const total = (p) => p.values.reduce((a, v) => a + (v || 0), 0);
  const whole = drawn.reduce((a, p) => a + total(p), 0);
  const ordered = [...sums].sort((a, b) => a - b);
  const top = Math.min(ordered[ordered.length - 1], 1.6 * ordered[Math.floor(0.95 * (ordered.length - 1))]) * 1.04 || 1;
  const read = readouts(legend, drawn.map((p) => ({ ...p, block: true })), (p, i) => (i === null ? percent(total(p) / whole) : `${number(p.values[i])} s`));
  let follow = () => {};
  cursors.get(table).push((index) => { follow(index); read(index); });
  read(null);
  onWidth(body, (width) => {
    const shape = frame(body, table, width, height, 0, top, table.step[0] - 0.5);
    const { svg, x, y } = shape;
    const base = table.step.map(() => 0);
    for (const p of drawn) {
      const upper = base.map((b, i) => b + (p.values[i] || 0));
      draw(svg, "path", { d: steps(table, base, upper, x, (v) => y(Math.min(v, top))), fill: p.color, opacity: 0.92 });
      upper.forEach((v, i) => (base[i] = v));
    }
    sums.forEach((sum, i) => sum > top && draw(svg, "path", { d: `M${x(table.step[i]) - 3.5},${MARGIN.top - 1}l3.5,-6l3.5,6Z`, fill: "var(--soft)" }));
    const tip = (i) => [...drawn.map((p) => [p.name, `${number(p.values[i])} s`, p.color]).reverse(), ["together", `${number(sums[i])} s`]];
    follow = track(shape, table, width, height, tip, () => {});
  });
}

// The outline of one part of a stack: a block a point, from one step's middle to the next one's.
function steps(table, lower, upper, x, y) {
  const edge = (i) => x(i <= 0 ? table.step[0] - 0.5 : i >= table.step.length ? table.step[i - 1] : (table.step[i - 1] + table.step[i]) / 2).toFixed(1);
  let there = "", back = "";
  for (let i = 0; i < table.step.length; i++) {
    there += `${i ? "L" : "M"}${edge(i)},${y(upper[i]).toFixed(1)}L${edge(i + 1)},${y(upper[i]).toFixed(1)}`;
    back = `L${edge(i + 1)},${y(lower[i]).toFixed(1)}L${edge(i)},${y(lower[i]).toFixed(1)}${back}`;
  }
  return `${there}${back}Z`;
}
