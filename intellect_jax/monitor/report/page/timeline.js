// When each role worked, with deaths, restarts, evaluations and other events on the axis of run time.

const SPAN_COLORS = { supervised: "var(--c3)", RL: "var(--c1)", lost: "var(--bad)", serving: "var(--c2)", generating: "var(--c4)" };
const EVENT_COLORS = { death: "var(--bad)", restore: "var(--bad)", error: "var(--c3)", compile: "var(--c3)", eval: "var(--c5)", start: "var(--good)", end: "var(--soft)" };
const EVENT_NAMES = { death: "death", restore: "restored", error: "failed rollouts", compile: "recompiled", eval: "evaluation", start: "start", end: "end" };

function timeTicks(end, count) {
  const choices = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
  const step = choices.find((s) => end / s <= count) || 604800 * Math.ceil(end / 604800 / count);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}

function marker(svg, kind, x, y) {
  const color = EVENT_COLORS[kind];
  const group = draw(svg, "g", { class: "mark" });
  draw(group, "circle", { cx: x, cy: y, r: 9, fill: "transparent" });
  if (kind === "death") {
    draw(group, "circle", { cx: x, cy: y, r: 7, fill: "var(--card)", stroke: color, "stroke-width": 1.5 });
    draw(group, "path", { d: `M${x - 3},${y - 3}l6,6m0,-6l-6,6`, stroke: color, "stroke-width": 1.8, "stroke-linecap": "round" });
  } else if (kind === "restore") draw(group, "path", { d: `M${x - 4},${y - 6}l9,6l-9,6Z`, fill: color, stroke: "var(--card)" });
  else if (kind === "eval") draw(group, "path", { d: `M${x},${y - 6}l6,6l-6,6l-6,-6Z`, fill: color, stroke: "var(--card)", "stroke-width": 1.5 });
  else draw(group, "circle", { cx: x, cy: y, r: 4.5, fill: color, stroke: "var(--card)", "stroke-width": 1.5 });
  return group;
}

function timelineChart() {
  const { lanes, events, end } = data.timeline;
  if (events.filter((event) => event.kind === "start").length > 1) byId("run-time").textContent = "pauses before the run was resumed are left out";
  const body = make("div"), legend = make("div", { class: "legend" });
  const kinds = [...new Set(Object.values(lanes).flat().map((span) => span[2]))];
  for (const kind of kinds) legend.append(make("span", {}, make("i", { class: "block", style: `--key:${SPAN_COLORS[kind]}` }), kind === "lost" ? "steps lost to a restart" : kind));
  for (const kind of new Set(events.map((e) => e.kind))) legend.append(make("span", {}, make("i", { class: "dot", style: `--key:${EVENT_COLORS[kind]}` }), EVENT_NAMES[kind]));
  byId("timeline").append(make("div", { class: "card-head" }, make("span"), legend), body, eventList());
  const names = ["run", ...new Set([...Object.keys(lanes), ...events.map((e) => e.role).filter((r) => r !== "launch")])];
  let follow = () => {};
  cursors.get(rl).push((index) => follow(index));
  onWidth(body, (width) => {
    body.replaceChildren();
    const row = 30, left = 104, right = 18, height = names.length * row + 34;
    const svg = draw(body, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    const x = (time) => left + (time / (end || 1)) * (width - left - right);
    const middle = (name) => 8 + (names.indexOf(name) + 0.5) * row;
    for (const time of timeTicks(end, Math.max(2, width / 110))) {
      draw(svg, "line", { class: "gridline", x1: x(time), x2: x(time), y1: 6, y2: height - 24 });
      draw(svg, "text", { x: x(time), y: height - 7, "text-anchor": "middle" }, time ? duration(time) : "0");
    }
    for (const name of names) {
      draw(svg, "text", { class: "lane", x: 0, y: middle(name) + 4 }, name);
      for (const [begin, finish, kind] of lanes[name] || []) {
        const span = draw(svg, "rect", { x: x(begin), y: middle(name) - 6, width: Math.max(1.5, x(finish) - x(begin)), height: 12, rx: 3, fill: SPAN_COLORS[kind], opacity: 0.8 });
        span.addEventListener("mousemove", (event) => showTooltip(event, ...tipTable(`${name}: ${kind}`, [["from", duration(begin)], ["to", duration(finish)], ["for", duration(finish - begin)]])));
        span.addEventListener("mouseleave", hideTooltip);
      }
    }
    draw(svg, "line", { x1: x(0), x2: x(end), y1: middle("run"), y2: middle("run"), stroke: "var(--rule)", "stroke-width": 2 });
    for (const event of events.filter((e) => e.kind === "death")) draw(svg, "line", { class: "fault", x1: x(event.time), x2: x(event.time), y1: 8, y2: height - 24 });
    for (const event of events) {
      const mark = marker(svg, event.kind, x(event.time), middle(event.role === "launch" ? "run" : event.role));
      mark.addEventListener("mousemove", (e) => showTooltip(e, make("div", { class: "title" }, duration(event.time)), event.text));
      mark.addEventListener("mouseleave", hideTooltip);
    }
    const line = draw(svg, "line", { class: "cursor", y1: 6, y2: height - 24, visibility: "hidden" });
    follow = (index) => {
      line.setAttribute("visibility", index === null ? "hidden" : "visible");
      if (index !== null) { line.setAttribute("x1", x(rl.time[index])); line.setAttribute("x2", x(rl.time[index])); }
    };
  });
}

function eventList() {
  const notable = data.timeline.events.filter((event) => event.kind !== "eval");
  const list = make("div", { class: "events" });
  for (const event of notable) list.append(make("div", { class: event.kind }, make("time", {}, duration(event.time)), make("span", { style: `color:${EVENT_COLORS[event.kind]}` }, "•"), make("span", {}, event.text)));
  if (data.timeline.events_left_out) list.append(make("div", {}, make("time"), make("span"), `and ${data.timeline.events_left_out} more`));
  return list;
}
