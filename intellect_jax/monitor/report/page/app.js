// The page: header, figures, then every chart.

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "☀ Light" : "☾ Dark";
}
const preferred = matchMedia("(prefers-color-scheme: dark)");
let picked = false; // by hand: then the system's preference no longer matters
applyTheme(preferred.matches ? "dark" : "light");
preferred.addEventListener("change", (event) => picked || applyTheme(event.matches ? "dark" : "light"));
byId("theme").addEventListener("click", () => {
  picked = true;
  applyTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
});

function header() {
  const date = (seconds) => new Date(1000 * seconds).toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
  document.title = `${data.name} · run report`;
  byId("name").textContent = data.name;
  const color = { done: "var(--good)", running: "var(--c1)", "ended early": "var(--c3)" }[data.status];
  const text = data.started ? `started ${date(data.started)} · ran ${duration(data.summary.wall_seconds)}` : "nothing logged yet";
  byId("when").append(make("span", { class: "badge", id: "status", style: `--badge:${color}` }, data.status), `${text} · as of ${date(data.written)}`);
  for (const [label, value] of data.facts.filter((fact) => fact[1])) byId("facts").append(make("div", {}, make("dt", {}, label), make("dd", {}, value)));
}

function tile(label, value, note, kind = "") {
  byId("tiles").append(make("div", { class: `tile ${kind}` }, make("div", { class: "label" }, label), make("div", { class: "value" }, ...[value].flat()), make("div", { class: "note" }, ...[note ?? ""].flat())));
}

function change(label, before, after) {
  if (!known(before) && !known(after)) return;
  const value = known(before) && known(after) ? [make("span", { class: "from" }, `${before.toFixed(3)} → `), after.toFixed(3)] : (before ?? after).toFixed(3);
  const gain = known(before) && known(after) ? after - before : null;
  tile(label, value, gain === null ? (known(after) ? "after RL" : "before RL") : [make("span", { class: gain > 0 ? "up" : gain < 0 ? "down" : "" }, signed(gain)), " through RL"], "lead");
}

function tiles() {
  const s = data.summary;
  change("Held-out reward", s.eval_reward_before_rl, s.eval_reward_after_rl);
  if (s.eval_exact_before_rl || s.eval_exact_after_rl) change("Held-out exact match", s.eval_exact_before_rl, s.eval_exact_after_rl);
  tile("RL steps", [s.steps.toLocaleString("en-US"), make("span", { class: "from" }, ` / ${data.max_steps.toLocaleString("en-US")}`)], s.sft_steps ? `after ${s.sft_steps.toLocaleString("en-US")} supervised` : "");
  tile("Trained tokens", number(s.trained_tokens), `${percent(s.stale_token_fraction)} of older versions`);
  tile("Sampler", `${number(s.sampler_tokens_per_second)}`, "tokens/s generated");
  tile("Trainer", `${number(s.trainer_tokens_per_second)}`, `tokens/s; waits ${percent(s.trainer_idle_fraction)} of its time`);
  tile("Process deaths", String(s.process_deaths), s.process_deaths ? "restarted; see the timeline" : "none", s.process_deaths ? "alarm" : "");
}

function charts() {
  const bin = rl.step.length > 1 ? rl.step[1] - rl.step[0] : 1;
  if (bin > 1) byId("averaged").textContent = `each point is the mean of ${bin} steps`;
  const points = (name) => data.evals.filter((e) => known(e[name])).map((e) => ({ step: e.step, value: e[name] }));
  lineChart("learning", "chart-reward", "Reward", rl, [
    { name: "training", values: rl.reward, color: "var(--c1)" },
    { name: "held-out", points: points("reward"), color: "var(--c5)" },
  ], { span: true, height: 270 });
  lineChart("learning", "chart-loss", "Loss", rl, [{ name: "loss", values: rl.loss, color: "var(--c1)" }]);
  lineChart("learning", "chart-grad", "Gradient norm", rl, [{ name: "norm", values: rl.grad, color: "var(--c2)" }], { zero: true });
  lineChart("learning", "chart-entropy", "Policy entropy", rl, [{ name: "nats per token", values: rl.entropy, color: "var(--c3)" }], { zero: true });
  lineChart("learning", "chart-kl", "Trainer–sampler KL", rl, [
    { name: "all tokens", values: rl.kl, color: "var(--c4)" },
    { name: "staleness 0", values: rl.kl_fresh, color: "var(--c5)", raw: true },
  ], { zero: true });
  stalenessHistogram("asynchrony");
  stalenessOverSteps("asynchrony");
  lineChart("asynchrony", "chart-queue", "Queue depth", rl, [
    { name: "batches for the trainer", values: rl.queue, color: "var(--c1)" },
  ], { zero: true, hint: "packed batches that wait, mean over the step" });
  lineChart("asynchrony", "chart-requests", "Requests in the samplers", rl, [
    { name: "running", values: rl.running, color: "var(--c2)" },
    { name: "waiting", values: rl.waiting, color: "var(--c3)" },
  ], { zero: true, hint: "of all samplers together, mean over the step" });
  lineChart("asynchrony", "chart-speed", "Tokens per second", rl, [
    { name: "trainer, while it computes", values: rl.trainer_speed, color: "var(--c1)" },
    { name: "samplers", values: rl.sampler_speed, color: "var(--c2)" },
  ], { zero: true, span: true, height: 210 });
  stackChart("times", "chart-time-trainer", "Trainer", rl, [
    { name: "step", values: rl.train, color: "var(--c1)" },
    { name: "publish", values: rl.publish, color: "var(--c4)" },
    { name: "wait for a batch", values: rl.wait, color: "var(--c3)" },
    { name: "other", values: rl.other, color: "var(--idle)" },
  ], { hint: "other: checkpoints, restarts" });
  stackChart("times", "chart-time-sampler", "Samplers", rl, [
    { name: "generate", values: rl.sampler_busy, color: "var(--c2)" },
    { name: "no request", values: rl.sampler_idle, color: "var(--idle)" },
  ], { hint: "mean of all samplers" });
  stackChart("times", "chart-time-orchestrator", "Orchestrator", rl, [
    { name: "a batch waits for the trainer", values: rl.batch_ready, color: "var(--c4)" },
    { name: "still collecting", values: rl.batch_none, color: "var(--c3)" },
  ], { hint: "collecting alone means that the trainer may starve" });
  if (!sft.step.length) return byId("sft-section").remove();
  lineChart("warmup", "chart-sft-loss", "Cross-entropy", sft, [{ name: "nats per token", values: sft.loss, color: "var(--c3)" }], { zero: true });
  lineChart("warmup", "chart-sft-grad", "Gradient norm", sft, [{ name: "norm", values: sft.grad, color: "var(--c2)" }], { zero: true });
  lineChart("warmup", "chart-sft-rate", "Learning rate", sft, [{ name: "rate", values: sft.learning_rate, color: "var(--c1)", raw: true }], { zero: true });
}

header();
tiles();
timelineChart();
charts();
rolloutReader();
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => redraws.forEach((redraw) => redraw()), 120);
});
document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds from navigation
