// One run: linked curves, and transitions that arrive as cards.

import {
  OPTIONS, ago, ask, band, colour, el, faint, grouped, isPositive, layout, lineColour, onTheme, plain, plotly, poll,
  query, remember, say, when,
} from "/static/common.js";

const FIRST = ["Losses", "λ̂", "Metrics between 0 and 1", "Norms"];
const SYMBOLS = { unconverged: "x", negative: "triangle-down-open", diverged: "diamond-open" };
const key = decodeURIComponent(location.pathname.split("/")[2] ?? "");
const state = { x: "step", llc: "log", shown: null, view: null, run: null, series: new Map(), text: "" };
const cards = new Map();
const panels = new Map();
let parts, Plotly, quiet = false, timer = null, started = false;

export function show(main) {
  const given = new URLSearchParams(location.search);
  state.x = ["step", "log", "time"].includes(given.get("x")) ? given.get("x") : "step";
  state.llc = given.get("llc") === "linear" ? "linear" : "log";
  state.shown = given.has("show") ? given.getAll("show") : null;
  parts = {
    title: el("h1"), sub: el("p", { class: "sub" }), cards: el("div", { class: "cards", id: "cards" }),
    found: el("h2", {}, "Transitions"), tools: el("div", { class: "tools" }), families: el("div", { class: "tools" }),
    plots: el("div", { id: "plots" }), files: el("p", { class: "note" }),
  };
  main.replaceChildren(parts.title, parts.sub, parts.found, parts.cards, el("h2", {}, "Curves"),
    parts.tools, parts.families, parts.plots, parts.files);
  for (const [value, text] of [["step", "step"], ["log", "log step"], ["time", "wall time"]]) {
    parts.tools.append(toggle(text, () => state.x === value, () => {
      Object.assign(state, { x: value, view: null });
      load(true);
    }));
  }
  parts.tools.append(toggle("λ̂ log", () => state.llc === "log", () => {
    state.llc = state.llc === "log" ? "linear" : "log";
    drawAll();
  }), el("button", { type: "button", onclick: () => look(null) }, "Show all steps"));
  onTheme(drawAll);
  plotly().then((loaded) => { Plotly = loaded; drawAll(); });
  poll(refresh, 1);
}

function toggle(text, isOn, press) {
  const button = el("button", { type: "button" }, text);
  const mark = () => button.setAttribute("aria-pressed", isOn());
  button.addEventListener("click", () => { press(); keep(); parts.marks.forEach((one) => one()); });
  parts.marks = [...(parts.marks ?? []), mark];
  mark();
  return button;
}

function keep() {
  const all = families().map(([name]) => name);
  const chosen = state.shown ?? [];
  remember([["x", state.x === "step" ? "" : state.x], ["llc", state.llc === "log" ? "" : "linear"],
    ...(state.shown === null ? [] : chosen.length ? chosen : [""]).map((name) => ["show", name])]
    .filter(([name, value]) => name !== "show" || all.includes(value)));
}

async function refresh() {
  const run = await ask(`/api/run/${encodeURIComponent(key)}`);
  const text = JSON.stringify({ ...run, seen: 0 });
  const moved = !state.run || run.seen !== state.run.seen || run.step !== state.run.step;
  state.run = run;
  if (text !== state.text) {
    state.text = text;
    describe(run);
    showCards(run);
    chooseFamilies();
  } else parts.sub.querySelector(".seen").textContent = ago(run.seen);
  if (moved) await load(false);
  started = true;
}

function describe(run) {
  document.title = `${run.name} · phasewatch`;
  parts.title.textContent = run.name;
  const branch = run.branch_of ? ` · branch of ${run.branch_of.slice(0, 8)} at step ${grouped(run.branch_step)}` : "";
  const alerts = Object.entries(run.alerts).map(([what, n]) => `${n} ${what}`).join(", ");
  parts.sub.replaceChildren(
    el("span", { class: `state ${run.state}` }, run.state), run.reason ? ` (${run.reason})` : "",
    ` · step ${grouped(run.step)} · attempt ${run.attempt} · started ${when(run.started)}${branch} · last seen `,
    el("span", { class: "seen" }, ago(run.seen)), alerts ? ` · alerts: ${alerts}` : "");
  const path = `/run/${encodeURIComponent(key)}`;
  parts.files.replaceChildren("Download: ", ...run.formats.flatMap((form) =>
    [el("a", { href: `${path}/export.${form}`, download: true }, form.toUpperCase()), " "]),
  el("a", { href: `${path}/report.html` }, "report"));
}

// ---- cards

function showCards(run) {
  const standing = run.transitions.filter((t) => t.status !== "withdrawn").length;
  parts.found.textContent = standing ? `Transitions (${standing})` : "Transitions: none yet";
  const order = [...run.transitions].reverse();
  for (const one of order) {
    const known = cards.get(one.id);
    if (!known) {
      const card = makeCard(one, run.colours[one.kind]);
      if (started) {
        card.node.classList.add("new");
        say(`New: ${one.title}`);
        setTimeout(() => card.node.classList.remove("new"), 8000);
      }
      cards.set(one.id, card);
    } else if (known.text !== JSON.stringify(one)) fillCard(known, one, run.colours[one.kind]);
  }
  const wanted = order.map((one) => cards.get(one.id).node);
  if (wanted.some((node, i) => parts.cards.children[i] !== node)) parts.cards.replaceChildren(...wanted);
}

function makeCard(one, tint) {
  const card = { node: el("article", { class: "card" }), facts: el("dl"), head: el("h3"), much: el("p"), sure: el("p") };
  card.node.append(card.head, card.much, card.sure,
    el("details", {}, el("summary", {}, "Evidence"), card.facts),
    el("button", { type: "button", onclick: () => look(card.one) }, "Show in the curves"));
  fillCard(card, one, tint);
  return card;
}

function fillCard(card, one, tint) {
  Object.assign(card, { one, text: JSON.stringify(one) });
  card.node.dataset.id = one.id;
  card.node.style.borderLeftColor = tint;
  card.node.classList.toggle("withdrawn", one.status === "withdrawn");
  card.head.textContent = one.title;
  card.much.textContent = one.facts["How much"];
  card.sure.textContent = `How sure: ${one.facts["How sure"]}`;
  card.facts.replaceChildren(...Object.entries(one.facts).flatMap(([heading, text]) =>
    [el("dt", {}, heading), el("dd", {}, text)]));
}

/** Zoom every panel to a transition, or out of it. */
function look(one) {
  if (one === null) state.view = null;
  else {
    const [first, last] = one.band;
    const around = Math.max(last - first, 20);
    state.view = [Math.max(0, first - around), last + around];
    parts.plots.scrollIntoView({ block: "start" });
  }
  load(true);
}

// ---- curves

function families() {
  const found = new Map();
  for (const one of state.run?.streams ?? []) {
    if (!found.has(one.family)) found.set(one.family, []);
    found.get(one.family).push(one.name);
  }
  const place = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
  return [...found].sort(([a], [b]) => place(a) - place(b) || (a < b ? -1 : 1));
}

function isShown(name) {
  return state.shown === null ? FIRST.includes(name) || families().length <= 6 : state.shown.includes(name);
}

function chooseFamilies() {
  const all = families();
  const text = JSON.stringify(all.map(([name]) => name));
  if (parts.familyText === text) return;
  parts.familyText = text;
  parts.families.replaceChildren(...all.map(([name, streams]) => {
    const box = el("input", { type: "checkbox", onchange: (event) => {
      const now = new Set(all.map(([one]) => one).filter(isShown));
      if (event.target.checked) now.add(name); else now.delete(name);
      state.shown = [...now];
      keep();
      load(true);
    } });
    box.checked = isShown(name);
    return el("label", {}, box, ` ${name}`, streams.length > 1 ? ` (${streams.length})` : "");
  }));
}

let waiting = false, busy = false;
async function load(now) {
  if (busy) { waiting = true; return; }
  busy = true;
  try {
    const names = families().filter(([name]) => isShown(name)).flatMap(([, streams]) => streams.slice(0, 24));
    if (names.length) {
      const [from, to] = state.x === "time" || !state.view ? ["", ""] : state.view;
      const found = await ask(`/api/run/${encodeURIComponent(key)}/series` + query([
        ...names.map((name) => ["name", name]), ["from", from], ["to", to],
        ["timed", state.x === "time" ? "1" : ""]]));
      state.series = new Map(found.series.map((one) => [one.name, one]));
      if (found.series.some((one) => one.rough)) setTimeout(() => load(false).catch(() => {}), 700);
    }
    drawAll(now);
  } finally {
    busy = false;
    if (waiting) { waiting = false; load(false).catch(() => {}); }
  }
}

const placeOf = (step) => {
  if (state.x !== "time") return step;
  let best = null;
  for (const one of state.series.values()) if (one.time && (!best || one.x.length > best.x.length)) best = one;
  if (!best) return null;
  const at = best.x.findIndex((x) => x !== null && x >= step);
  const seconds = at < 0 ? best.time.findLast((t) => t !== null) : best.time[at];
  return seconds ? new Date(1000 * seconds) : null;
};

const axisOf = (one) => (state.x === "time" ? one.time.map((t) => (t === null ? null : new Date(1000 * t))) : one.x);

function drawAll() {
  if (!Plotly || !state.run) return;
  const wanted = families().filter(([name]) => isShown(name));
  for (const [name, panel] of panels) {
    if (!wanted.some(([one]) => one === name)) { Plotly.purge(panel.plot); panel.node.remove(); panels.delete(name); }
  }
  const there = wanted.map(([name, streams]) =>
    [name, streams.map((one) => state.series.get(one)).filter(Boolean)]).filter(([, series]) => series.length);
  for (const [name] of there) if (!panels.has(name)) panels.set(name, makePanel(name));
  const order = there.map(([name]) => panels.get(name).node);
  if (order.some((node, i) => parts.plots.children[i] !== node)) parts.plots.replaceChildren(...order);
  for (const [name, series] of there) draw(panels.get(name), name, series);
}

function makePanel(name) {
  const plot = el("div", { class: "plot", role: "img", "aria-label": `Curves: ${name}` });
  const save = (format) => Plotly.downloadImage(plot, { format, width: 1200, height: 500, filename: `${state.run.name} ${name}` });
  const node = el("section", { class: "panel", "data-family": name },
    el("div", { class: "tools" }, el("h3", {}, name), el("span", { class: "gap" }),
      el("button", { type: "button", onclick: () => save("png"), "aria-label": `Save ${name} as PNG` }, "PNG"),
      el("button", { type: "button", onclick: () => save("svg"), "aria-label": `Save ${name} as SVG` }, "SVG")),
    plot);
  return { node, plot, bound: false };
}

function draw(panel, name, series) {
  const log = name === "Losses" || name === "Norms" || (name === "λ̂" && state.llc === "log");
  const isLog = log && isPositive(series);
  const traces = series.flatMap((one, i) => tracesOf(one, lineColour(i), isLog, series));
  const shapes = [...bands(panel.node === parts.plots.firstElementChild), ...series.flatMap(rug)];
  const unit = new Set(series.map((one) => one.unit));
  const units = unit.size === 1 && !unit.has("1") ? plain([...unit][0]) : "";
  const xaxis = { type: { step: "linear", log: "log", time: "date" }[state.x] };
  const view = state.view ?? [0, Math.max(state.run.step ?? 1, 1)];
  if (state.x === "time") xaxis.autorange = true;  // the panels of a run cover the same time
  else xaxis.range = state.x === "log" ? view.map((v) => Math.log10(Math.max(v, 1))) : view;
  const shown = layout({
    xaxis, yaxis: { type: isLog ? "log" : "linear", title: { text: units } }, shapes, showlegend: true,
    uirevision: name, margin: { t: 12, b: 34, l: 64, r: 12 },
  });
  Plotly.react(panel.plot, traces, shown, OPTIONS);
  if (!panel.bound) {
    panel.bound = true;
    panel.plot.on("plotly_relayout", moved);
  }
}

function tracesOf(one, tint, isLog, series) {
  const x = axisOf(one);
  const label = plain(one.name);
  const isPart = one.name.includes("/") && series.some((other) => other.name === one.name.split("/")[0]);
  const visible = isPart && series.length > 6 ? "legendonly" : true;
  const found = [];
  if (one.error) {
    const floor = Math.min(...one.y.filter((v) => v !== null && v > 0)) / 10;
    const low = one.y.map((v, i) => (v === null ? null : Math.max(v - 2 * (one.error[i] ?? 0), isLog ? floor : -Infinity)));
    const high = one.y.map((v, i) => (v === null ? null : v + 2 * (one.error[i] ?? 0)));
    found.push({ ...band(x, low, high), fill: "toself", fillcolor: faint(tint, 0.22), mode: "lines",
      line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: label, visible });
  }
  const few = one.x.length < 80;
  found.push({
    x, y: one.y, mode: few ? "lines+markers" : "lines", name: label, legendgroup: label, visible,
    line: { color: tint, width: 1.8 }, marker: { size: 5 }, connectgaps: false,
    customdata: one.error ?? undefined,
    hovertemplate: one.error ? "%{x}<br>%{y:.5g} ± %{customdata:.2g}<extra>%{fullData.name}</extra>"
      : "%{x}<br>%{y:.5g}<extra>%{fullData.name}</extra>",
  });
  const doubt = one.doubtful;
  const at = state.x === "time" ? doubt.time.map((t) => new Date(1000 * t)) : doubt.x;
  const keptAt = doubt.y.map((v, i) => i).filter((i) => !isLog || doubt.y[i] > 0);
  if (keptAt.length) {
    found.push({
      x: keptAt.map((i) => at[i]), y: keptAt.map((i) => doubt.y[i]), mode: "markers", name: `${label}, not OK`,
      legendgroup: label, visible, text: keptAt.map((i) => doubt.status[i]),
      marker: { color: colour("quiet"), size: 7, symbol: keptAt.map((i) => SYMBOLS[doubt.status[i]] ?? "x") },
      hovertemplate: "%{x}<br>%{y:.5g} (%{text})<extra>%{fullData.name}</extra>",
    });
  }
  return found;
}

function bands(named) {
  return state.run.transitions.flatMap((one) => {
    const tint = state.run.colours[one.kind];
    const [first, last, seen] = [...one.band, one.detected].map(placeOf);
    if (first === null) return [];
    const gone = one.status === "withdrawn";
    return [
      { type: "rect", xref: "x", yref: "paper", x0: first, x1: last, y0: 0, y1: 1, layer: "below",
        fillcolor: faint(tint, gone ? 0.06 : 0.22), line: { width: gone ? 1 : 0, color: tint, dash: "dot" },
        label: named ? { text: one.kind.replaceAll("_", " "), textposition: "top left", font: { size: 11 } } : undefined },
      { type: "line", xref: "x", yref: "paper", x0: seen, x1: seen, y0: 0, y1: 1,
        line: { width: 1.5, color: tint, dash: "dash" } },
    ];
  });
}

const rug = (one) => one.lost.slice(-100).map((step) => ({
  type: "line", xref: "x", yref: "y domain", x0: placeOf(step), x1: placeOf(step), y0: 0, y1: 0.06,
  line: { color: "#D55E00", width: 2 },
}));

/** What is zoomed in one panel is zoomed in all, and asked for more finely. */
function moved(change) {
  if (quiet || state.x === "time") return;
  if (change["xaxis.autorange"]) state.view = null;
  else if (change["xaxis.range[0]"] !== undefined) {
    const range = [change["xaxis.range[0]"], change["xaxis.range[1]"]].map(Number);
    state.view = state.x === "log" ? range.map((v) => 10 ** v) : range;
  } else return;
  clearTimeout(timer);
  quiet = true;
  drawAll();
  quiet = false;
  timer = setTimeout(() => load(true).catch(() => {}), 120);
}
