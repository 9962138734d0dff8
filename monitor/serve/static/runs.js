// The list of runs: live, with sparklines, a filter, an order, and a choice to compare.

import { ago, ask, el, grouped, poll, query, remember, say, when } from "/static/common.js";

const COLUMNS = [
  ["name", "Run", (r) => r.name.toLowerCase()],
  ["state", "State", (r) => r.state],
  ["step", "Step", (r) => r.step ?? -1],
  ["loss", "Loss"],
  ["llc", "λ̂"],
  ["transitions", "Transitions", (r) => standing(r).length],
  ["alerts", "Alerts", (r) => r.alerts.waiting ?? 0],
  ["seen", "Last seen", (r) => r.seen],
];

const standing = (run) => run.transitions.filter((t) => t.status !== "withdrawn");
const rows = new Map();
const chosen = new Set();
const state = { filter: "", order: "seen", down: true, colours: {}, runs: [], stores: [] };
let body, count, compareLink;

export function show(main) {
  const given = new URLSearchParams(location.search);
  state.filter = given.get("filter") ?? "";
  state.order = given.get("order") ?? "seen";
  state.down = given.get("way") !== "up";
  const search = el("input", {
    type: "search", id: "filter", placeholder: "Filter: name, id, state, kind  ( / )",
    "aria-label": "Filter the runs", value: state.filter,
    oninput: (event) => { state.filter = event.target.value; keep(); arrange(); },
  });
  search.value = state.filter;
  count = el("span", { class: "note" });
  compareLink = el("a", { href: "/compare", hidden: true });
  body = el("tbody");
  const head = el("tr", {}, el("th", { scope: "col" }, el("span", { class: "unseen" }, "Compare")));
  for (const [key, title, value] of COLUMNS) {
    const cell = el("th", { scope: "col", class: key === "step" ? "number" : null, id: `by-${key}` });
    if (value) cell.append(el("button", { type: "button", onclick: () => sortBy(key) }, title));
    else cell.append(title);
    head.append(cell);
  }
  main.replaceChildren(
    el("h1", {}, "Runs"),
    el("div", { class: "tools" }, search, count, el("span", { class: "gap" }), compareLink),
    el("div", { class: "wide" }, el("table", { class: "runs" }, el("thead", {}, head), body)),
  );
  document.title = "Runs · phasewatch";
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
    }
  });
  poll(refresh, 1);
}

function keep() {
  remember([["filter", state.filter], ["order", state.order], ["way", state.down ? "" : "up"]]);
}

function sortBy(key) {
  if (state.order === key) state.down = !state.down;
  else Object.assign(state, { order: key, down: key !== "name" && key !== "state" });
  keep();
  arrange();
}

async function refresh() {
  const found = await ask("/api/runs");
  Object.assign(state, found);
  for (const run of found.runs) {
    const text = JSON.stringify(run);
    const known = rows.get(run.key);
    if (!known) rows.set(run.key, { text, run, row: fill(el("tr"), run), stale: true });
    else if (known.text !== text) {
      tell(known.run, run);
      Object.assign(known, { text, run, stale: true });
      fill(known.row, run);
    } else if (run.state === "running") known.row.querySelector(".seen").textContent = ago(run.seen);
  }
  const there = new Set(found.runs.map((run) => run.key));
  for (const key of rows.keys()) if (!there.has(key)) { rows.get(key).row.remove(); rows.delete(key); }
  arrange();
  await sparks();
}

function tell(before, after) {
  if (standing(after).length > standing(before).length) {
    say(`${after.name}: ${standing(after).at(-1).kind}`);
  }
}

function arrange() {
  const wanted = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const value = COLUMNS.find(([key]) => key === state.order)?.[2] ?? ((r) => r.seen);
  const shown = [...rows.values()].filter(({ run }) => {
    const text = [run.name, run.id, run.state, ...run.transitions.map((t) => t.kind)].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  shown.sort((a, b) => {
    const [x, y] = [value(a.run), value(b.run)];
    const order = (x < y ? -1 : x > y ? 1 : 0) * (state.down ? -1 : 1);
    return order || b.run.started - a.run.started || (a.run.key < b.run.key ? -1 : 1);
  });
  const wantedRows = shown.map(({ row }) => row);
  if (wantedRows.length !== body.children.length || wantedRows.some((row, i) => body.children[i] !== row)) {
    const focused = document.activeElement;
    body.replaceChildren(...wantedRows);
    if (body.contains(focused)) focused.focus();
  }
  for (const [key] of COLUMNS) {
    const cell = document.getElementById(`by-${key}`);
    if (key === state.order) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
  const of = shown.length === rows.size ? "" : ` of ${rows.size}`;
  count.textContent = rows.size ? `${shown.length}${of} runs` : "no runs yet: they appear as they start";
  compareLink.hidden = chosen.size < 2;
  compareLink.textContent = `Compare ${chosen.size} runs`;
  compareLink.href = `/compare${query([...chosen].map((key) => ["run", key]))}`;
}

function fill(row, run) {
  const box = el("input", {
    type: "checkbox", "aria-label": `Compare ${run.name}`,
    onchange: (event) => {
      if (event.target.checked) chosen.add(run.key); else chosen.delete(run.key);
      arrange();
    },
  });
  box.checked = chosen.has(run.key);
  const store = state.stores.length > 1 ? `${state.stores[Number(run.store)]?.where} · ` : "";
  const chips = standing(run).slice(-4).map((t) => el("span", {},
    el("span", { class: "dot", style: `background:${state.colours[t.kind]}` }),
    `${t.kind.replaceAll("_", " ")} ${grouped(t.onset)}`));
  if (standing(run).length > 4) chips.unshift(el("span", {}, `${standing(run).length - 4} earlier`));
  row.dataset.key = run.key;
  const old = Object.fromEntries([...row.querySelectorAll("[data-spark]")].map((c) => [c.dataset.spark, c]));
  row.replaceChildren(
    el("td", {}, box),
    el("td", { class: "name" }, el("a", { href: `/run/${encodeURIComponent(run.key)}` }, run.name || run.id),
      el("div", { class: "note" }, `${store}${run.id.slice(0, 8)}`)),
    el("td", {}, el("span", { class: `state ${run.state}`, title: run.reason }, run.state)),
    el("td", { class: "number" }, grouped(run.step)),
    old.loss ?? el("td", { "data-spark": "loss" }),
    old.llc ?? el("td", { "data-spark": "llc" }),
    el("td", { class: "chipcell" }, el("div", { class: "chips" }, ...chips)),
    el("td", {}, fate(run.alerts)),
    el("td", { class: "seen", title: when(run.seen) }, ago(run.seen)),
  );
  return row;
}

function fate(alerts) {
  return ["waiting", "sent", "dropped"].filter((one) => alerts[one])
    .map((one) => `${alerts[one]} ${one}`).join(", ") || "–";
}

async function sparks() {
  const stale = [...rows.values()].filter(({ stale, row }) => {
    if (!stale || !row.isConnected) return false;
    const place = row.getBoundingClientRect();
    return place.bottom > -200 && place.top < innerHeight + 200;
  }).slice(0, 30);
  if (!stale.length) return;
  const found = await ask(`/api/sparks${query(stale.map(({ run }) => ["run", run.key]))}`);
  for (const one of stale) {
    one.stale = Object.values(found[one.run.key] ?? {}).some((line) => line.rough);
    for (const what of ["loss", "llc"]) {
      const line = found[one.run.key]?.[what];
      one.row.querySelector(`[data-spark="${what}"]`).replaceChildren(...(line ? [spark(line)] : ["–"]));
    }
  }
}

addEventListener("scroll", () => { sparks().catch(() => {}); }, { passive: true });

function spark({ name, x, y }) {
  const positive = y.every((v) => v === null || v > 0);
  const known = y.filter((v) => v !== null).map((v) => (positive ? Math.log(v) : v));
  const steps = x.filter((v) => v !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const [first, last] = [steps[0], steps.at(-1)];
  let path = "", pen = "M";
  x.forEach((step, i) => {
    if (step === null) { pen = "M"; return; }
    const value = positive ? Math.log(y[i]) : y[i];
    const px = last > first ? (100 * (step - first)) / (last - first) : 50;
    const py = high > low ? 24 - (22 * (value - low)) / (high - low) : 12;
    path += `${pen}${px.toFixed(1)} ${py.toFixed(1)}`;
    pen = "L";
  });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 26");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("role", "img");
  const last_value = y.findLast((v) => v !== null);
  svg.setAttribute("aria-label", `${name}, last ${last_value === undefined ? "none" : last_value}`);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}
