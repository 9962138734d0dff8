// What a reader can do with the charts that are in the page already: point, zoom, hide, change a scale.
const charts = [...document.querySelectorAll(".chart")].map((node) => {
  const [low, high, last] = ["low", "high", "last"].map((name) => Number(node.dataset[name]));
  const paths = [...node.querySelectorAll(".view path")].map((path) => ({ path, d: path.getAttribute("d") }));
  return {
    node, paths, low, high, last, drawnLog: node.dataset.scale === "log", log: node.dataset.scale === "log",
    view: node.querySelector(".view"), steps: node.querySelector(".steps"), heights: node.querySelector(".heights"),
    curves: node.querySelector(".curves"), cursor: node.querySelector(".cursor"), zoom: node.querySelector(".zoom"),
    readout: node.parentNode.querySelector(".readout"),
  };
});
const shared = { log: false, from: 0, to: Math.max(1, ...charts.map((chart) => chart.last)) };
const whole = shared.to;
const across = (step) => (shared.log ? Math.log10(Math.max(step, 1)) : step);
const share = (step) => (across(step) - across(shared.from)) / (across(shared.to) - across(shared.from));
const stepAt = (part) => {
  const at = across(shared.from) + part * (across(shared.to) - across(shared.from));
  return shared.log ? 10 ** at : at;
};
const place = (value, chart, log) => {
  const of = log ? Math.log10 : Number;
  return HEIGHT * (of(chart.high) - of(value)) / (of(chart.high) - of(chart.low));
};
const valueAt = (y, chart) => {
  const part = 1 - y / HEIGHT;
  return chart.drawnLog ? chart.low * (chart.high / chart.low) ** part : chart.low + part * (chart.high - chart.low);
};

function redraw(chart) {
  const same = chart.log === chart.drawnLog;
  const y = (given) => (same || given <= 0 || given >= HEIGHT ? given
    : place(valueAt(given, chart), chart, chart.log).toFixed(1));
  for (const { path, d } of chart.paths) {
    path.setAttribute("d", same && !shared.log ? d : d.replace(/(-?[\d.]+),(-?[\d.]+)/g,
      (_, x, height) => `${across(Number(x))},${y(Number(height))}`));
  }
  const [left, right] = [across(shared.from), across(shared.to)];
  chart.view.setAttribute("viewBox", `${left} 0 ${right - left} ${HEIGHT}`);
  chart.steps.replaceChildren(...ticks(Math.max(shared.from, shared.log ? 1 : 0), shared.to, shared.log).map((step, i) =>
    svgNode("text", { x: `${100 * share(step)}%`, y: "1.1em", "text-anchor": "middle", class: i % 2 ? "odd" : "" }, grouped(step))));
  for (const line of chart.curves.querySelectorAll(".grid")) line.remove();
  const heights = ticks(chart.low, chart.high, chart.log);
  chart.heights.replaceChildren(...heights.map((value) => svgNode("text", { x: "100%", dx: "-6",
    y: `${place(value, chart, chart.log) / (HEIGHT / 100)}%`, dy: ".35em", "text-anchor": "end" }, short(value))));
  chart.curves.prepend(...heights.map((value) => {
    const at = `${place(value, chart, chart.log) / (HEIGHT / 100)}%`;
    return svgNode("line", { class: "grid", x1: 0, x2: "100%", y1: at, y2: at });
  }));
  for (const mark of chart.curves.querySelectorAll(".mark")) {
    const at = share(Number(mark.dataset.step));
    mark.setAttribute("x", `${100 * at}%`);
    mark.setAttribute("visibility", at >= 0 && at <= 1 ? "visible" : "hidden");
  }
}
const redrawAll = () => charts.forEach(redraw);

/** Every point of a curve, by step. */
function pointsOf(group) {
  group.points ??= [...group.querySelectorAll("path.line, path.point")].flatMap((path) => {
    const { d } = charts.flatMap((chart) => chart.paths).find((one) => one.path === path);
    return [...d.matchAll(/(-?[\d.]+),(-?[\d.]+)/g)].map((found) => [Number(found[1]), Number(found[2])]);
  }).sort((a, b) => a[0] - b[0]);
  return group.points;
}

function nearest(points, step) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= step) low = middle; else high = middle;
  }
  return Math.abs(points[low]?.[0] - step) <= Math.abs(points[high]?.[0] - step) ? points[low] : points[high];
}

/** A line at one step through all charts, and what each curve says nearest to it. */
function point(step) {
  for (const chart of charts) {
    const at = `${100 * share(step)}%`;
    for (const key of ["x1", "x2"]) chart.cursor.setAttribute(key, at);
    chart.cursor.style.visibility = "visible";
    const said = [...chart.node.querySelectorAll(".series:not(.hidden)")].flatMap((group) => {
      const found = nearest(pointsOf(group), step);
      return found ? [`${group.dataset.name} ${short(valueAt(found[1], chart))} (${grouped(found[0])})`] : [];
    });
    chart.readout.textContent = `step ${grouped(Math.round(step))}: ${said.slice(0, 8).join(" · ")}`;
  }
}
function unpoint() {
  for (const chart of charts) { chart.cursor.style.visibility = "hidden"; chart.readout.textContent = ""; }
}
function look(from, to) {
  Object.assign(shared, { from, to });
  redrawAll();
}

for (const chart of charts) {
  const part = (event) => {
    const box = chart.curves.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  let start = null, aim = 0.5;
  chart.curves.addEventListener("pointerdown", (event) => { if (event.pointerType === "mouse") start = part(event); });
  chart.curves.addEventListener("pointermove", (event) => {
    point(stepAt(part(event)));
    if (start === null) return;
    const [left, right] = [start, part(event)].sort((a, b) => a - b);
    chart.zoom.setAttribute("x", `${100 * left}%`);
    chart.zoom.setAttribute("width", `${100 * (right - left)}%`);
    chart.zoom.style.visibility = "visible";
  });
  chart.curves.addEventListener("pointerleave", () => { start = null; chart.zoom.style.visibility = "hidden"; unpoint(); });
  chart.curves.addEventListener("pointerup", (event) => {
    chart.zoom.style.visibility = "hidden";
    if (start === null) return;
    const [left, right] = [start, part(event)].sort((a, b) => a - b);
    start = null;
    if (right - left > 0.01) look(stepAt(left), stepAt(right));
  });
  chart.curves.addEventListener("dblclick", () => look(0, whole));
  chart.curves.setAttribute("tabindex", "0");
  chart.curves.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -0.01, ArrowRight: 0.01 }[event.key];
    if (event.key === "Escape") { unpoint(); look(0, whole); }
    if (!move) return;
    event.preventDefault();
    aim = Math.min(1, Math.max(0, aim + move));
    point(stepAt(aim));
  });
  chart.curves.addEventListener("blur", unpoint);
  chart.curves.addEventListener("click", (event) => {
    const known = chart.paths.find((one) => one.path === event.target);
    if (!known || !/point|doubt/.test(event.target.getAttribute("class"))) return;
    const step = Number(/(-?[\d.]+),/.exec(known.d)[1]);
    const found = data.chains.findIndex((one) => one.step === step);
    if (found >= 0) showChains(found);
  });
  const tools = document.createElement("span");
  if (chart.low > 0) {
    const button = document.createElement("button");
    const tell = () => { button.textContent = chart.log ? "linear" : "log"; };
    button.type = "button";
    button.addEventListener("click", () => { chart.log = !chart.log; tell(); redraw(chart); });
    tell();
    tools.append(button);
  }
  chart.readout.before(tools);
  for (const item of chart.node.parentNode.querySelectorAll(".legend li")) {
    const group = chart.node.querySelector(`.series[data-at="${item.dataset.at}"]`);
    const button = document.createElement("button");
    const show = (shown) => {
      button.setAttribute("aria-pressed", shown);
      group.classList.toggle("hidden", !shown);
    };
    button.type = "button";
    button.append(...item.childNodes);
    button.addEventListener("click", () => show(group.classList.contains("hidden")));
    item.append(button);
    show(!("part" in item.dataset));  // parts would bury their total: they wait for a click
  }
}
const tools = document.getElementById("step-tools");
if (tools && charts.length) {
  tools.hidden = false;
  const log = document.getElementById("step-scale");
  log.addEventListener("click", () => {
    shared.log = !shared.log;
    log.textContent = shared.log ? "steps: linear" : "steps: log";
    redrawAll();
  });
  document.getElementById("step-all").addEventListener("click", () => look(0, whole));
}
