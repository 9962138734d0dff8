// What the scripts of all pages share.
"use strict";
const HEIGHT = 100000;
const data = JSON.parse(document.getElementById("page-data").textContent);
const svgNode = (tag, attributes, text = "") => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
};
const short = (value) => (value === 0 ? "0" : String(Number(value.toPrecision(3))));
const grouped = (value) => Number(value.toPrecision(6)).toLocaleString("en-US");

/** Round numbers between two, a handful of them. */
function ticks(low, high, log) {
  if (log) {
    const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const wide = last - first > 4, stride = wide ? Math.ceil((last - first) / 6) : 1, found = [];
    for (let power = first; power <= last; power += stride) {
      for (const digit of wide ? [1] : [1, 2, 5]) found.push(digit * 10 ** power);
    }
    const inside = found.filter((tick) => low <= tick && tick <= high);
    if (inside.length > 2) return inside;
  }
  const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((times) => times * unit >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high; at += 1) found.push(at * step);
  return found;
}
