"use strict";

// Links from the tables to the explorer: the runs behind each row, and the training curves of each of them.

function linkTables(explorer) {
  for (const link of document.querySelectorAll("a.explore")) {
    link.addEventListener("click", () => showRunsOf(explorer, link.dataset));
  }
  for (const details of document.querySelectorAll("details.runs")) {
    const add = () => details.open && addButtons(explorer, details);
    details.addEventListener("toggle", add);
    add();
  }
}

// Show the runs of an algorithm on a dataset, given by their printed names.
function showRunsOf(explorer, { dataset, algorithm }) {
  const { datasets, algorithms } = explorer.block.header;
  const i = datasets.findIndex(({ title }) => title === dataset);
  if (i >= 0) {
    explorer.setDataset(
      i,
      algorithms.findIndex(({ title }) => title === algorithm),
    );
  }
}

// Add a button to each run behind the results of a table, which shows its training curves.
function addButtons(explorer, details) {
  const places = findRuns(explorer);
  for (const link of details.querySelectorAll("td a[href$='/']")) {
    const place = places.get(link.getAttribute("href").split("/").at(-2));
    if (place && !link.nextElementSibling) {
      const button = element("button", "curves", "curves");
      button.type = "button";
      button.addEventListener("click", () => explorer.openRunOf(...place));
      link.after(" ", button);
    }
  }
}

// Return the dataset and the number of each run, by its folder.
function findRuns(explorer) {
  const { datasets } = explorer.block.header;
  return new Map(datasets.flatMap(({ folders }, i) => folders.map((folder, run) => [folder, [i, run]])));
}
