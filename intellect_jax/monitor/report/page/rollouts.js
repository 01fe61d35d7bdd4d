// The rollout reader: groups side by side, tokens shaded by log-probability or advantage, underlined by version.

const reader = data.reader;
const VERSION_COLORS = ["var(--c1)", "var(--c3)", "var(--c2)", "var(--c5)", "var(--c4)", "var(--c6)"];
const view = { kind: null, group: 0, shade: "logprob" };
const KIND_NAMES = { early: "Early", middle: "Middle", late: "Late", best: "Best", worst: "Worst" };

function segmented(id, choices, current, choose) {
  const box = make("div", { class: "segmented", id, role: "group" });
  for (const [value, label] of choices) {
    const button = make("button", { type: "button", "data-value": value, "aria-pressed": String(value === current) }, label);
    button.addEventListener("click", () => choose(value));
    box.append(button);
  }
  return box;
}

function rolloutReader() {
  const kinds = Object.keys(reader.kinds).filter((kind) => reader.kinds[kind].length);
  if (!kinds.length) return byId("rollouts").append(make("div", { class: "empty" }, "no rollouts written yet"));
  view.kind = kinds.includes("late") ? "late" : kinds[0];
  showGroup(kinds);
}

function meanReward(group) {
  const rewards = group.rollouts.map((r) => r.reward).filter(known);
  return rewards.length ? rewards.reduce((a, b) => a + b) / rewards.length : null;
}

function showGroup(kinds) {
  const groups = reader.kinds[view.kind], group = groups[Math.min(view.group, groups.length - 1)];
  const again = (change) => { Object.assign(view, change); hideTooltip(); showGroup(kinds); };
  const versions = [...new Set(group.rollouts.flatMap((r) => r.nodes.flatMap((n) => n.versions.map((run) => run[0]))))].sort((a, b) => a - b);
  const colors = new Map(versions.map((v, i) => [v, VERSION_COLORS[i % VERSION_COLORS.length]]));
  const strongest = Math.max(...group.rollouts.map((r) => Math.abs(r.advantage || 0))) || 1;
  const long = group.rollouts.some((r) => r.tokens > 120);
  byId("rollouts").replaceChildren(
    make("div", { class: "bar" },
      segmented("rollout-kinds", kinds.map((kind) => [kind, KIND_NAMES[kind]]), view.kind, (kind) => again({ kind, group: 0 })),
      segmented("rollout-groups", groups.map((g, i) => [i, `step ${g.step} · ${number(meanReward(g))}`]), view.group, (i) => again({ group: i })),
      make("div", { class: "shading" }, "shaded by", segmented("rollout-shade", [["logprob", "log-probability"], ["advantage", "advantage"]], view.shade, (shade) => again({ shade })), scale())),
    make("div", { class: "group-head" },
      make("span", {}, make("b", {}, group.env)),
      make("span", {}, `task ${group.task}`),
      make("span", {}, "mean reward ", make("b", {}, number(meanReward(group)))),
      make("span", {}, `${group.rollouts.length} of ${group.size} rollouts, best first`),
      ...versions.map((v) => make("span", { class: "chip", style: `--version:${colors.get(v)}` }, `version ${v}, ${group.step - 1 - v} old`))),
    make("div", { class: "prompt" }, ...group.prompt.map((node) => turn(node, group, colors, 0, null))),
    make("div", { class: long ? "columns long" : "columns" }, ...group.rollouts.map((r) => rolloutCard(r, group, colors, (r.advantage || 0) / strongest))),
  );
}

function scale() {
  const ramp = view.shade === "logprob"
    ? "linear-gradient(to right, rgb(var(--heat) / 0), rgb(var(--heat) / 0.85))"
    : "linear-gradient(to right, color-mix(in srgb, var(--bad) 50%, transparent), transparent, color-mix(in srgb, var(--good) 50%, transparent))";
  const [from, to] = view.shade === "logprob" ? ["sure", "unlikely"] : ["worse", "better"];
  return make("span", { class: "scale" }, from, make("i", { style: `--ramp:${ramp}` }), to);
}

function rolloutCard(rollout, group, colors, strength) {
  const metrics = Object.entries(rollout.metrics).map(([name, value]) => make("span", {}, `${name} ${number(value)}`));
  const head = make("div", { class: "rollout-head" },
    make("b", {}, rollout.error ? "failed" : number(rollout.reward)),
    make("span", { class: strength > 0 ? "up" : strength < 0 ? "down" : "" }, known(rollout.advantage) ? `advantage ${signed(rollout.advantage)}` : ""));
  const share = Math.max(0, Math.min(1, rollout.reward || 0));
  return make("article", { class: "rollout" }, head,
    make("div", { class: "meter" }, make("i", { style: `width:${100 * share}%` })),
    ...rollout.nodes.map((node) => turn(node, group, colors, strength, rollout.nodes.length > 1)),
    rollout.error ? make("p", { class: "missing" }, rollout.error) : null,
    make("div", { class: "meta" }, ...metrics, make("span", {}, `${rollout.tokens} tokens`), rollout.finish ? make("span", {}, rollout.finish) : null, make("span", {}, `${rollout.seconds} s`)));
}

function turn(node, group, colors, strength, label) {
  const box = make("div");
  const from = node.fork < 0 ? "from a fresh prompt" : `after turn ${node.fork + 1} again`;
  if (label || label === null) box.append(make("div", { class: "turn" }, node.fork === null ? node.role : `${node.role}, ${from}`));
  if (node.cut) box.append(make("div", { class: "missing" }, `… ${node.cut.toLocaleString("en-US")} tokens not shown …`));
  const tokens = make("div", { class: "tokens" });
  const versions = node.versions.flatMap(([version, length]) => Array(length).fill(version));
  node.tokens.forEach((number_, i) => {
    const version = versions[i];
    if (i > 0 && known(version) && version !== versions[i - 1]) tokens.append(make("sup", { style: `--version:${colors.get(version)}` }, `v${version}`));
    tokens.append(token(node, i, number_, version, colors, group, strength));
  });
  box.append(tokens);
  return box;
}

function token(node, i, text, version, colors, group, strength) {
  const special = reader.special.includes(text);
  const shown = reader.texts[text].replace(/\n/g, "↵\n");
  if (!node.sampled) return make("span", { class: special ? "special" : "given" }, shown);
  const logprob = node.logprobs[i] / 1000;
  const shade = view.shade === "logprob"
    ? `rgb(var(--heat) / ${Math.min(0.85, -logprob * 0.24).toFixed(3)})`
    : `color-mix(in srgb, var(${strength > 0 ? "--good" : "--bad"}) ${Math.round(50 * Math.abs(strength))}%, transparent)`;
  const span = make("span", { class: special ? "t special" : "t", style: `background:${shade};--version:${colors.get(version)}` }, shown);
  span.addEventListener("mousemove", (event) => showTooltip(event,
    make("div", { class: "title" }, make("code", {}, JSON.stringify(reader.texts[text]))),
    tipTable("", [["probability", percent(Math.exp(logprob))], ["log-probability", logprob.toFixed(3)], ["written by version", String(version)], ["staleness in its step", String(group.step - 1 - version)]])[1]));
  span.addEventListener("mouseleave", hideTooltip);
  return span;
}
