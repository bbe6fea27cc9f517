// Filters, sorts and enlarges the gallery. The page is complete without it: whatever it needs is hidden until it runs.
(() => {
  "use strict";
  const section = document.querySelector("#images");
  const tools = document.querySelector("#tools");
  const viewer = document.querySelector("#viewer");
  if (!section || !tools || !viewer) return;

  const grid = section.querySelector(".queries");
  const more = section.querySelector(".more");
  const blocks = [...section.querySelectorAll("article.query")];
  const columns = (block) => [...block.querySelectorAll(".column[data-model]")];
  const chosen = (name) => tools.elements[name].value;
  const fits = (column) =>
    ["model", "outcome", "answer"].every((key) => !chosen(key) || column.dataset[key] === chosen(key));
  let shown = blocks;

  function sortValue(block) {
    const values = columns(block).filter(fits).map((column) => Number(column.dataset[chosen("sort")]));
    return Math.max(...values.filter(Number.isFinite), -Infinity);
  }

  function arrange() {
    if (more) more.hidden = true; // all images stand in one grid from the first choice on
    for (const block of blocks) {
      block.hidden = (chosen("label") && block.dataset.label !== chosen("label")) || !columns(block).some(fits);
      for (const column of columns(block)) column.hidden = !fits(column);
    }
    const order = chosen("sort") ? [...blocks].sort((a, b) => sortValue(b) - sortValue(a)) : blocks;
    grid.append(...order);
    shown = order.filter((block) => !block.hidden);
    tools.querySelector("output").textContent = `${shown.length} of ${blocks.length} query images`;
  }

  const picture = (column, kind) => column.querySelector(`[data-kind="${kind}"] img`);
  let current = null;

  function layer(image, className) {
    const copy = image.cloneNode();
    copy.className = className;
    return copy;
  }

  function open(block) {
    current = block;
    viewer.querySelector("h3").textContent = block.getAttribute("aria-label");
    const before = block.querySelector('[data-kind="inversion"] img');
    const kind = viewer.querySelector("[name=kind]:checked").value;
    const figures = columns(block).filter((column) => !column.hidden && picture(column, "counterfactual")).map((column) => {
      const figure = document.createElement("figure");
      const stack = document.createElement("div");
      const caption = document.createElement("figcaption");
      stack.className = "stack";
      stack.append(layer(before, "under"), layer(picture(column, kind) || picture(column, "counterfactual"), "over"));
      const told = column.querySelector(`[data-kind="${kind}"] figcaption`);
      const name = document.createElement("b");
      name.textContent = column.dataset.model;
      caption.append(name, document.createElement("br"));
      if (told) caption.append(...told.cloneNode(true).childNodes);
      figure.append(stack, caption);
      const trace = column.querySelector("svg.spark");
      if (trace) figure.append(trace.cloneNode(true));
      return figure;
    });
    viewer.querySelector(".beside").replaceChildren(...figures);
    if (!viewer.open) viewer.showModal();
  }

  function step(by) {
    const at = shown.indexOf(current);
    if (shown.length) open(shown[(at + by + shown.length) % shown.length]);
  }

  tools.hidden = false;
  tools.addEventListener("change", arrange);
  tools.addEventListener("submit", (event) => event.preventDefault());
  for (const block of blocks) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "compare";
    button.setAttribute("aria-label", `Compare before and after: ${block.getAttribute("aria-label")}`);
    button.addEventListener("click", () => open(block));
    block.querySelector("h4").append(" ", button);
  }
  viewer.addEventListener("input", (event) => {
    if (event.target.type === "range") viewer.style.setProperty("--at", `${event.target.value}%`);
    else open(current);
  });
  viewer.addEventListener("click", (event) => {
    const by = event.target.dataset && event.target.dataset.step;
    if (by) step(Number(by));
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT") return; // arrows move the slider and the choice of the picture
    if (event.key === "ArrowRight") step(1);
    if (event.key === "ArrowLeft") step(-1);
  });
})();
