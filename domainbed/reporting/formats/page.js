"use strict";

// One selection method at a time; the address's fragment, which names a method or something in it, says which.
const methods = [...document.querySelectorAll("section.method")];

function choose(chosen) {
  for (const method of methods) {
    method.hidden = method !== chosen;
  }
  for (const item of document.querySelectorAll("[data-of]")) {
    item.hidden = item.dataset.of !== chosen.id;
  }
  for (const radio of document.querySelectorAll(".switch input")) {
    radio.checked = radio.value === chosen.id;
  }
}

// Show what the address's fragment names; not every browser unfolds what it lies in.
function follow() {
  const target = document.getElementById(location.hash.slice(1));
  choose(target?.closest("section.method") ?? methods.find((method) => !method.hidden));
  for (let folded = target?.closest("details"); folded; folded = folded.parentElement.closest("details")) {
    folded.open = true;
  }
  target?.scrollIntoView();
}

for (const radio of document.querySelectorAll(".switch input")) {
  radio.addEventListener("change", () => {
    choose(document.getElementById(radio.value));
    history.replaceState(null, "", `#${radio.value}`);
  });
}
addEventListener("hashchange", follow);
// A second click on a link does not change the fragment, but what it leads to may be folded away by now.
addEventListener("click", (event) => {
  if (location.hash && event.target.closest("a")?.hash === location.hash) {
    follow();
  }
});

// Tables sort by a column, at first with the best or the most on top; what is missing is always last.
function key(row, column) {
  const cell = row.cells[column];
  return cell.scope ? cell.textContent : Number(cell.dataset.value ?? NaN);
}

function sort(table, header) {
  const body = table.tBodies[0];
  const first = header.dataset.first ?? "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    if (typeof a === "string") {
      return sign * a.localeCompare(b, "en", { numeric: true });
    }
    return isNaN(a) - isNaN(b) || sign * (a - b) || 0;
  };
  const rows = [...body.rows].map((row) => [key(row, header.cellIndex), row]);
  body.append(...rows.sort(([a], [b]) => compare(a, b)).map(([, row]) => row));
  for (const each of header.parentElement.cells) {
    each.removeAttribute("aria-sort");
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

for (const element of document.querySelectorAll(".switch, .with-script")) {
  element.hidden = false;
}
follow();
