// Runs and seeds laid over one another.

import {
  OPTIONS, ask, band, colour, el, faint, grouped, isPositive, layout, lineColour, onTheme, plain, plotly, poll, query,
  remember,
} from "/static/common.js";

const DASHES = ["solid", "dash", "dot", "dashdot"];
const state = { keys: [], names: [], align: "", found: null, mean: true };
const panels = new Map();
let parts, Plotly, text = "";

export function show(main) {
  const given = new URLSearchParams(location.search);
  state.keys = given.getAll("run");
  state.names = given.getAll("name");
  state.align = given.get("align") ?? "";
  state.mean = given.get("mean") !== "off";
  parts = {
    streams: el("div", { class: "tools" }), plots: el("div", { id: "plots" }),
    align: el("select", { id: "align", onchange: (event) => { state.align = event.target.value; change(); } }),
    table: el("div", { class: "wide" }), note: el("p", { class: "note" }),
  };
  const mean = el("input", { type: "checkbox", onchange: (event) => { state.mean = event.target.checked; keep(); drawAll(); } });
  mean.checked = state.mean;
  main.replaceChildren(
    el("h1", {}, "Compare"),
    el("div", { class: "tools" }, el("label", { for: "align" }, "Align at"), parts.align,
      el("label", {}, mean, " mean ± 2 standard errors over runs")),
    parts.streams, parts.note, parts.plots, el("h2", {}, "Transitions by run"), parts.table);
  document.title = "Compare · phasewatch";
  onTheme(drawAll);
  plotly().then((loaded) => { Plotly = loaded; drawAll(); });
  poll(refresh, 2);
}

function keep() {
  remember([...state.keys.map((key) => ["run", key]), ...state.names.map((name) => ["name", name]),
    ["align", state.align], ["mean", state.mean ? "" : "off"]]);
}

function change() {
  keep();
  refresh().catch(() => {});
}

async function refresh() {
  if (!state.keys.length) {
    parts.note.textContent = "No runs are chosen: tick some in the list of runs.";
    return;
  }
  const ends = () => [...state.keys.map((key) => ["run", key]), ...state.names.map((name) => ["name", name]), ["align", state.align]];
  let found = await ask(`/api/compare${query(ends())}`);
  if (!state.names.length) {
    const first = ["train_loss", "val_loss", "llc"].filter((name) => found.names.includes(name));
    state.names = first.length ? first : found.names.slice(0, 2);
    if (state.names.length) found = await ask(`/api/compare${query(ends())}`);
    keep();
  }
  const now = JSON.stringify(found);
  if (now === text) return;
  text = now;
  state.found = found;
  choose();
  tabulate();
  drawAll();
}

function choose() {
  const { names, runs } = state.found;
  parts.streams.replaceChildren(...names.slice(0, 60).map((name) => {
    const box = el("input", { type: "checkbox", onchange: (event) => {
      state.names = event.target.checked ? [...state.names, name] : state.names.filter((one) => one !== name);
      change();
    } });
    box.checked = state.names.includes(name);
    return el("label", {}, box, ` ${name}`);
  }));
  const kinds = [...new Set(runs.flatMap((run) => run.transitions.map((t) => t.kind)))].sort();
  parts.align.replaceChildren(el("option", { value: "" }, "the first step"),
    ...kinds.map((kind) => el("option", { value: kind }, `onset of ${kind.replaceAll("_", " ")}`)));
  parts.align.value = kinds.includes(state.align) ? state.align : "";
  const without = runs.filter((run) => run.onset === null).map((run) => run.name);
  const shared = names.length ? "" : "These runs have no stream in common. ";
  parts.note.textContent = shared + (without.length ? `Without such a transition, and not drawn: ${without.join(", ")}.` : "");
}

function tabulate() {
  const { runs } = state.found;
  const kinds = [...new Set(runs.flatMap((run) => run.transitions.map((t) => t.kind)))].sort();
  const head = el("tr", {}, el("th", { scope: "col" }, "Run"), el("th", { scope: "col" }, "State"),
    el("th", { scope: "col", class: "number" }, "Step"),
    ...kinds.map((kind) => el("th", { scope: "col" }, `${kind.replaceAll("_", " ")}: onset (severity)`)));
  const rows = runs.map((run, i) => el("tr", {},
    el("th", { scope: "row" }, el("span", { class: "dot", style: `background:${lineColour(i)}` }),
      el("a", { href: `/run/${encodeURIComponent(run.key)}` }, run.name)),
    el("td", {}, run.state), el("td", { class: "number" }, grouped(run.step)),
    ...kinds.map((kind) => el("td", {}, run.transitions.filter((t) => t.kind === kind)
      .map((t) => `${grouped(t.onset)} (${t.severity})`).join(", ") || "–"))));
  parts.table.replaceChildren(el("table", {}, el("caption", { class: "unseen" }, "Transitions by run"),
    el("thead", {}, head), el("tbody", {}, ...rows)));
}

function drawAll() {
  if (!Plotly || !state.found) return;
  const wanted = state.found.panels.map((panel) => panel.name);
  for (const [name, panel] of panels) {
    if (!wanted.includes(name)) { Plotly.purge(panel.plot); panel.node.remove(); panels.delete(name); }
  }
  for (const one of state.found.panels) {
    if (!panels.has(one.name)) {
      const plot = el("div", { class: "plot", role: "img", "aria-label": `Curves of ${one.name} by run` });
      const save = (format) => Plotly.downloadImage(plot, { format, width: 1200, height: 500, filename: `compare ${one.name}` });
      panels.set(one.name, { plot, node: el("section", { class: "panel" },
        el("div", { class: "tools" }, el("h3", {}, one.name), el("span", { class: "gap" }),
          el("button", { type: "button", onclick: () => save("png") }, "PNG"),
          el("button", { type: "button", onclick: () => save("svg") }, "SVG")), plot) });
      parts.plots.append(panels.get(one.name).node);  // a plot takes the size of where it is
    }
    draw(panels.get(one.name).plot, one);
  }
  const order = wanted.map((name) => panels.get(name).node);
  if (order.some((node, i) => parts.plots.children[i] !== node)) parts.plots.replaceChildren(...order);
}

function draw(plot, one) {
  const series = Object.values(one.curves);
  const isLog = isPositive(series) && /loss|norm|llc/.test(one.name);
  const many = state.mean && one.mean;
  const traces = state.found.runs.flatMap((run, i) => {
    const curve = one.curves[run.key];
    if (!curve) return [];
    const tint = lineColour(i);
    return [{
      x: curve.x, y: curve.y, mode: curve.x.length < 80 ? "lines+markers" : "lines", name: plain(run.name),
      line: { color: tint, width: many ? 1 : 1.8, dash: DASHES[Math.floor(i / 7) % DASHES.length] },
      opacity: many ? 0.6 : 1, marker: { size: 4 }, connectgaps: false,
      hovertemplate: "%{x}<br>%{y:.5g}<extra>%{fullData.name}</extra>",
    }];
  });
  if (many) {
    const { x, y, low, high } = one.mean;
    const tint = colour("first");
    const floor = isLog ? Math.min(...y.filter((v) => v > 0)) / 10 : -Infinity;
    traces.push(
      { ...band(x, low.map((v) => (v === null ? null : Math.max(v, floor))), high), fill: "toself", mode: "lines",
        fillcolor: faint(tint, 0.15), line: { width: 0 }, hoverinfo: "skip", showlegend: false },
      { x, y, mode: "lines", name: "mean", line: { color: tint, width: 2.6 },
        hovertemplate: "%{x}<br>%{y:.5g}<extra>mean</extra>" });
  }
  const title = state.align ? `steps after the onset of ${state.align.replaceAll("_", " ")}` : "optimizer step";
  Plotly.react(plot, traces, layout({ xaxis: { title: { text: title } }, yaxis: { type: isLog ? "log" : "linear" },
    uirevision: `${one.name} ${state.align}`, showlegend: true }), OPTIONS);
}
