// The traces of one estimate's chains, chosen with a slider.
let showChains = () => {};
const box = document.getElementById("chains");
if (box) {
  const slider = document.getElementById("chain-slider");
  const plot = document.getElementById("chain-plot");
  const draw = () => {
    const one = data.chains[Number(slider.value)];
    document.getElementById("chain-title").textContent =
      `${one.title} (${Number(slider.value) + 1} of ${data.chains.length})`;
    document.getElementById("chain-facts").replaceChildren(...Object.entries(one.facts).map(([key, value]) => {
      const item = document.createElement("li");
      item.textContent = `${key}: ${value}`;
      return item;
    }));
    const seen = [...one.loss.flat(), one.init].filter((value) => value !== null);
    const [low, high] = [Math.min(...seen), Math.max(...seen)];
    const room = 0.05 * (high - low) || Math.abs(high) || 1;
    const [first, last] = [one.draw[0], Math.max(one.draw.at(-1), one.draw[0] + 1)];
    const up = (value) => HEIGHT * (high + room - value) / (high - low + 2 * room);
    const line = (xs, ys) => xs.map((x, i) => (ys[i] === null ? "" :
      `${i && ys[i - 1] !== null ? "L" : "M"}${x},${up(ys[i]).toFixed(0)}`)).join("");
    const view = svgNode("svg", { class: "view", viewBox: `${first} 0 ${last - first} ${HEIGHT}`, preserveAspectRatio: "none",
      width: "100%", height: "100%" });
    one.loss.forEach((loss, i) => view.append(svgNode("path", { class: `c${i % 7}`, d: line(one.draw, loss) })));
    if (one.init !== null) {
      view.append(svgNode("path", { class: "c6 seen", d: `M${first},${up(one.init)}L${last},${up(one.init)}` }));
    }
    const heights = svgNode("svg", { class: "heights" }), curves = svgNode("svg", { class: "curves" });
    const steps = svgNode("svg", { class: "steps" });
    for (const value of ticks(low - room, high + room, false)) {
      const at = `${up(value) / (HEIGHT / 100)}%`;
      heights.append(svgNode("text", { x: "100%", dx: "-6", y: at, dy: ".35em", "text-anchor": "end" }, short(value)));
      curves.append(svgNode("line", { class: "grid", x1: 0, x2: "100%", y1: at, y2: at }));
    }
    for (const step of ticks(first, last, false)) {
      steps.append(svgNode("text", { x: `${100 * (step - first) / (last - first)}%`, y: "1.1em", "text-anchor": "middle" }, grouped(step)));
    }
    curves.append(view);
    plot.className = "chart";
    plot.replaceChildren(heights, curves, steps);
  };
  slider.addEventListener("input", draw);
  box.addEventListener("toggle", () => { if (box.open) draw(); });
  if (box.open) draw();
  showChains = (at) => {
    slider.value = at; box.open = true; draw();
    box.scrollIntoView({ behavior: "smooth", block: "nearest" });
  };
}
