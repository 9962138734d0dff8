// Which page an address asks for.

import { el, startTheme } from "/static/common.js";

const main = document.getElementById("main");
startTheme();
const [, first] = location.pathname.split("/");
const page = { "": "runs", run: "run", compare: "compare" }[first] ?? "runs";
import(`/static/${page}.js`).then(
  (module) => module.show(main),
  (error) => main.replaceChildren(el("p", { class: "note" }, `This page did not load: ${error.message}`)),
);
