// What every page shares: elements without markup, questions to the server, colours, plotly.js.

export const LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "first"];

/** An element; texts are texts, whatever they hold. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A name as plotly.js shows it: it would turn some tags into markup. */
export const plain = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

export async function ask(path) {
  const answer = await fetch(path, { cache: "no-cache", credentials: "same-origin" });
  if (!answer.ok) {
    const said = await answer.text();
    let told = said;
    try { told = JSON.parse(said).error; } catch { /* it is no JSON */ }
    throw new Error(told || `the server answers ${answer.status}`);
  }
  return answer.json();
}

export function query(pairs) {
  const search = new URLSearchParams();
  for (const [key, value] of pairs) if (value !== "" && value !== null) search.append(key, value);
  return search.size ? `?${search}` : "";
}

/** Keep a part of the page's state in its address. */
export function remember(pairs) {
  history.replaceState(null, "", location.pathname + query(pairs));
}

/** Call again and again, never twice at once, and not while nobody looks. */
export function poll(call, seconds) {
  const live = document.getElementById("live");
  let stopped = false;
  async function turn() {
    if (stopped) return;
    if (!document.hidden) {
      try {
        await call();
        live.className = "";
        live.textContent = "live";
      } catch (error) {
        live.className = "lost";
        live.textContent = `not live: ${error.message}`;
      }
    }
    setTimeout(turn, 1000 * seconds);
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) call().catch(() => {}); });
  turn();
  return () => { stopped = true; };
}

export const grouped = (number) => (number === null ? "–" : number.toLocaleString("en-US"));

export function when(seconds) {
  return seconds ? new Date(1000 * seconds).toLocaleString() : "–";
}

export function ago(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  if (passed < 90) return `${Math.round(passed)} s ago`;
  if (passed < 5400) return `${Math.round(passed / 60)} min ago`;
  if (passed < 129600) return `${Math.round(passed / 3600)} h ago`;
  return `${Math.round(passed / 86400)} d ago`;
}

export function say(text) {
  document.getElementById("news").textContent = text;
}

// ---- colours

const themes = ["light", "dark"];
const watchers = [];

export function theme() {
  return document.documentElement.dataset.theme;
}

export function onTheme(call) { watchers.push(call); }

export function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem("phasewatch-theme");
  const apply = () => {
    const now = themes.includes(chosen()) ? chosen() : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = now;
    const button = document.getElementById("theme");
    button.textContent = now === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Show in ${button.textContent.toLowerCase()} colours`);
    watchers.forEach((call) => call());
  };
  document.getElementById("theme").addEventListener("click", () => {
    localStorage.setItem("phasewatch-theme", theme() === "dark" ? "light" : "dark");
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

export function lineColour(index) {
  const one = LINES[index % LINES.length];
  return one === "first" ? colour("first") : one;
}

export function faint(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

// ---- plotly.js

let loading = null;
export function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = el("script", { src: "/static/plotly.js" });
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => reject(new Error("plotly.js did not load")));
    document.head.append(script);
  });
  return loading;
}

export const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false };

export function layout(more) {
  const text = colour("text");
  const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, exponentformat: "power" };
  return {
    margin: { t: 12, b: 40, l: 64, r: 12 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: text },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("panel"), font: { color: text }, bordercolor: colour("line") },
    dragmode: "zoom",
    ...more,
    xaxis: { ...axis, showspikes: true, spikemode: "across", spikethickness: 1, ...more.xaxis },
    yaxis: { ...axis, ...more.yaxis },
  };
}

/** Whether a logarithmic axis can show every value. */
export function isPositive(series) {
  return series.some((s) => s.y.length) &&
    series.every((s) => s.y.every((v) => v === null || v > 0));
}

/** A band of two standard errors around a line, one closed shape for each part of it. */
export function band(x, low, high) {
  const found = { x: [], y: [] };
  let start = 0;
  for (let i = 0; i <= x.length; i += 1) {
    if (i < x.length && x[i] !== null && low[i] !== null) continue;
    if (i > start) {
      const part = [...Array(i - start).keys()].map((k) => start + k);
      const back = [...part].reverse();
      found.x.push(...part.map((k) => x[k]), ...back.map((k) => x[k]), null);
      found.y.push(...part.map((k) => high[k]), ...back.map((k) => low[k]), null);
    }
    start = i + 1;
  }
  return found;
}
