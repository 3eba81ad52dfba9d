"use strict";

// One selection method is shown at a time. The URL's fragment identifies it, or an element within it.
const methods = [...document.querySelectorAll("section.method")];

function showMethod(shown) {
  for (const method of methods) {
    method.hidden = method !== shown;
  }
  for (const item of document.querySelectorAll("[data-method]")) {
    item.hidden = item.dataset.method !== shown.id;
  }
  for (const radio of document.querySelectorAll(".methods input")) {
    radio.checked = radio.value === shown.id;
  }
  document.dispatchEvent(new CustomEvent("methodchange", { detail: shown.id })); // the explorer shows the same method
}

// Show the target of the URL's fragment. Not every browser opens the <details> around it.
function showTarget() {
  const target = document.getElementById(location.hash.slice(1));
  showMethod(target?.closest("section.method") ?? methods.find((method) => !method.hidden));
  for (let details = target?.closest("details"); details; details = details.parentElement.closest("details")) {
    details.open = true;
  }
  target?.scrollIntoView();
}

for (const radio of document.querySelectorAll(".methods input")) {
  radio.addEventListener("change", () => {
    showMethod(document.getElementById(radio.value));
    history.replaceState(null, "", `#${radio.value}`);
  });
}
addEventListener("hashchange", showTarget);
// A second click on a link fires no hashchange, but its target may have been closed since.
addEventListener("click", (event) => {
  if (location.hash && event.target.closest("a")?.hash === location.hash) {
    showTarget();
  }
});

// The first click on a header sorts the best, or the most, to the top. Missing results are always last.
function sortKey(row, column) {
  const cell = row.cells[column];
  return cell.scope ? cell.textContent : Number(cell.dataset.value ?? NaN);
}

function sort(table, header) {
  const body = table.tBodies[0];
  const first = header.dataset.first ?? "ascending";
  const reverse = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? reverse : first;
  const sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    if (typeof a === "string") {
      return sign * a.localeCompare(b, "en", { numeric: true });
    }
    return isNaN(a) - isNaN(b) || sign * (a - b) || 0;
  };
  const rows = [...body.rows].map((row) => [sortKey(row, header.cellIndex), row]);
  body.append(...rows.sort(([a], [b]) => compare(a, b)).map(([, row]) => row));
  for (const cell of header.parentElement.cells) {
    cell.removeAttribute("aria-sort");
  }
  header.setAttribute("aria-sort", order);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header));
    header.append(button);
  }
}

for (const element of document.querySelectorAll(".methods, .with-script")) {
  element.hidden = false;
}
showTarget();
