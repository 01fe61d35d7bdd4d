// Elements, numbers and the cursor that all charts share.

const data = JSON.parse(document.getElementById("data").textContent);
const rl = data.rl, sft = data.sft;
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function draw(parent, tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

const known = (value) => value !== null && value !== undefined;
const superscript = (text) => String(text).replace(/[-0-9]/g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));

// Three significant digits, as people write them.
function number(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6) return `${(value / 1e6).toFixed(size >= 1e7 ? 1 : 2)}M`;
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  if (size >= 100) return value.toFixed(0);
  if (size >= 10) return value.toFixed(1);
  if (size >= 1) return value.toFixed(2);
  if (size >= 0.001) return value.toFixed(size >= 0.1 ? 3 : 4);
  const [mantissa, exponent] = value.toExponential(1).split("e");
  return `${mantissa}×10${superscript(Number(exponent))}`;
}
const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "±") + number(Math.abs(value));
const percent = (value) => (known(value) ? `${(100 * value).toFixed((value > 0 && value < 0.1) || (value > 0.99 && value < 1) ? 1 : 0)}%` : "–");
function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 ? ` ${String(s % 60).padStart(2, "0")} s` : ""}`;
  return `${Math.floor(s / 3600)} h${s % 3600 >= 60 ? ` ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min` : ""}`;
}

// Round values from low to high, about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const values = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) values.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return values;
}
function tickLabel(value, step) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 1e6) return `${value / 1e6}M`;
  if (Math.abs(value) >= 10000) return `${value / 1000}k`;
  if (step >= 1) return value.toLocaleString("en-US");
  return step < 1e-4 ? number(value) : value.toFixed(Math.min(5, Math.ceil(-Math.log10(step) + (String(step).includes("25") ? 0.7 : 0) - 1e-9)));
}

// Index of the entry of an ascending list that is nearest to value.
function nearest(list, value) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle; else high = middle;
  }
  return value - list[low] <= list[high] - value ? low : high;
}

// The step under the pointer, as an index into a table's columns; every chart of that table follows it.
const cursors = new Map([[rl, []], [sft, []]]);
function moveCursor(table, index) {
  for (const follow of cursors.get(table)) follow(index);
}

const tooltip = byId("tooltip");
function showTooltip(event, ...content) {
  tooltip.replaceChildren(...content);
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = event.clientX + 16 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 16;
  tooltip.style.left = `${Math.max(4, left)}px`;
  tooltip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 6))}px`;
}
const hideTooltip = () => (tooltip.hidden = true);
function tipTable(title, rows) {
  const lines = rows.map(([label, value, color]) => {
    const name = make("td", {}, label);
    if (color) name.prepend(make("i", { style: `--key:${color}` }));
    return make("tr", {}, name, make("td", {}, value));
  });
  return [make("div", { class: "title" }, title), make("table", {}, ...lines)];
}
const stepTitle = (table, index) => `step ${table.step[index].toLocaleString("en-US")} · ${duration(table.time[index])}`;

// A card with a title and a place for its picture; `redraw(width)` is called now and whenever the width changes.
const redraws = [];
function card(parent, id, title, { hint, span } = {}) {
  const legend = make("div", { class: "legend" });
  const body = make("div");
  const box = make("div", { class: span ? "card span" : "card", id }, make("div", { class: "card-head" }, make("h3", {}, title), legend), hint ? make("p", { class: "hint" }, hint) : null, body);
  byId(parent).append(box);
  return { legend, body };
}
function onWidth(body, redraw) {
  const paint = () => redraw(body.clientWidth || 600);
  redraws.push(paint);
  paint();
}
