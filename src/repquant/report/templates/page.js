"use strict";
// Everything can be read without this: it sorts tables and shows one layer in all figures at once.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if ("fixed" in heading.dataset) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      for (const other of headings) other.removeAttribute("aria-sort");
      if (before === "descending") {
        body.append(...original);
        return;
      }
      const direction = before === "ascending" ? -1 : 1;
      heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      body.append(...[...original].sort((a, b) => compare(a.cells[column], b.cells[column], direction)));
    });
  });
}

// Cells without a value come last, whichever the direction.
function compare(a, b, direction) {
  const [x, y] = [a, b].map((cell) => cell.dataset.value ?? cell.textContent.trim());
  if (x === "" || y === "") return (x === "") - (y === "");
  const [m, n] = [Number(x), Number(y)];
  return direction * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y, "en", { numeric: true }) : m - n);
}

for (const figures of document.querySelectorAll(".profiles")) {
  const table = document.getElementById(`${figures.dataset.layers}-table`);
  const readout = figures.querySelector(".readout");
  const rows = new Map([...table.tBodies[0].rows].map((row) => [row.dataset.layer, row]));
  let current = null;

  const select = (layer) => {
    if (!rows.has(layer) || layer === current) return;
    for (const old of [figures, table.tBodies[0]].flatMap((part) => [...part.querySelectorAll(".selected")])) {
      old.classList.remove("selected");
    }
    current = layer;
    const bars = [...figures.querySelectorAll(`rect[data-layer="${layer}"]`)];
    for (const bar of bars) bar.classList.add("selected");
    const row = rows.get(layer);
    row.classList.add("selected");
    const values = bars.map(
      (bar) => `${bar.closest("figure").dataset.name} ${bar.querySelector("title").textContent.split(": ").pop()}`,
    );
    readout.textContent = `${row.cells[1].textContent}: ${values.join(", ")}`;
  };

  // The whole column of a layer answers, not only its bar.
  figures.addEventListener("pointermove", (event) => {
    const drawing = event.target.closest(".plot svg");
    if (!drawing) return;
    const box = drawing.getBoundingClientRect();
    select(String(Math.floor(((event.clientX - box.left) / box.width) * rows.size)));
  });
  figures.tabIndex = 0;
  figures.setAttribute("role", "group");
  figures.setAttribute("aria-label", "Figures of the layers; the arrow keys go from layer to layer");
  figures.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = current === null ? 0 : Number(current) + step;
    select(String(Math.min(Math.max(next, 0), rows.size - 1)));
  });
}
