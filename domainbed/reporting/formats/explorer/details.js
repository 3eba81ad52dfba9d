"use strict";

// What is known of a run: a short text next to the pointer, and a dialog with its training curves and hyperparameters.

function describeRun(state, run) {
  const { runs, selection } = state;
  const record = runs.selectedRecord(run, selection);
  const facts = [`Trial ${runs.trials[runs.trial[run]]}`, `draw ${runs.draws[runs.draw[run]]}`];
  if (record >= 0) {
    facts.push(`step ${runs.step(record).toLocaleString("en-US")}`);
  }
  const state_ = runs.states[runs.state[run]];
  if (state_ !== "done") {
    facts.push(state_);
  }
  const shownQuantities = runs.quantities.filter(
    ({ name }) => name === "test" || name === "in_domain" || name === state.quantity.name,
  );
  return {
    title: `${runs.algorithmTitle(run)}, test environment ${runs.environments[runs.env[run]]}`,
    facts: facts.join(", "),
    quantities: shownQuantities.map((quantity) => [
      quantity.label,
      formatQuantity(runs.selectedReader(quantity, selection)(run), quantity.unit),
      quantity.unit,
    ]),
    hparams: runs.hparams
      .map((hparam) => [hparam.name, runs.hparam(hparam, run)])
      .filter(([, value]) => value !== undefined),
    folder: runs.folderName(run),
    link: runs.link(run),
    isBest: runs.isBest(run, selection),
  };
}

function element(name, text, className) {
  const created = document.createElement(name);
  if (text !== undefined) {
    created.textContent = text;
  }
  if (className) {
    created.className = className;
  }
  return created;
}

function definitionList(pairs, className) {
  const list = element("dl", undefined, className);
  for (const [name, value] of pairs) {
    const row = list.appendChild(element("div"));
    row.append(element("dt", name), element("dd", value));
  }
  return list;
}

// Fill the tooltip with a run; the hyperparameters are those that differ between the runs shown.
function fillTooltip(tooltip, state, run, varying) {
  const { title, facts, quantities, folder, isBest } = describeRun(state, run);
  const values = varying.map((hparam) => [hparam.name, formatNumber(state.runs.hparam(hparam, run) ?? "–")]);
  tooltip.replaceChildren(
    element("b", title),
    element("p", facts + (isBest ? "; best of its trial" : "")),
    definitionList(
      quantities.map(([label, text, unit]) => [label, unit === "%" ? `${text}%` : text]),
      "quantities",
    ),
    definitionList(values, "hparams"),
    element("p", `${shorten(folder, 20)} · click or Enter: training curves`, "quiet"),
  );
}

// Move the tooltip next to a place in its container, inside of the window.
function placeTooltip(tooltip, left, top) {
  tooltip.hidden = false;
  const container = tooltip.offsetParent.getBoundingClientRect();
  const { width, height } = tooltip.getBoundingClientRect();
  const room = document.documentElement.clientWidth - 8;
  let x = container.left + left + 16;
  if (x + width > room) {
    x = Math.max(8, container.left + left - 16 - width);
  }
  let y = container.top + top + 14;
  if (y + height > innerHeight - 8) {
    y = Math.max(8, container.top + top - 14 - height);
  }
  tooltip.style.left = `${x - container.left}px`;
  tooltip.style.top = `${y - container.top}px`;
}

// Show a run in the dialog.
function openRun(dialog, state, run) {
  const { runs, selection } = state;
  const { title, facts, quantities, hparams, folder, link, isBest } = describeRun(state, run);
  const method = runs.header.selections[selection];
  const charts = element("div", undefined, "charts");
  const anchor = element("a", folder);
  anchor.href = link;
  const place = element("p", "Folder: ", "path");
  place.append(anchor);
  const close = element("button", "Close");
  close.type = "button";
  close.addEventListener("click", () => dialog.close());
  const heading = element("h3", title);
  heading.id = "run-title";
  const note = `${facts}, selected by ${method}${isBest ? "; the best run of its trial, which the tables report" : ""}.`;
  const allValues = element("section");
  allValues.append(
    element("h4", "Hyperparameters"),
    definitionList(
      hparams.map(([name, value]) => [name, formatNumber(value)]),
      "hparams",
    ),
  );
  dialog.replaceChildren(
    close,
    heading,
    element("p", note),
    definitionList(
      quantities.map(([label, text, unit]) => [label, unit === "%" ? `${text}%` : text]),
      "quantities",
    ),
    charts,
    allValues,
    place,
  );
  dialog.showModal();
  dialog.scrollTop = 0;
  const specs = [accuracyCurves(state, run), ...metricCurves(state, run)];
  const width = Math.min(charts.clientWidth, 1200);
  specs.forEach(({ spec, look, legend, isLarge }) => {
    const panel = new Panel(spec, look, spec.title);
    panel.plot.setAttribute("role", "img");
    panel.figure.classList.toggle("large", isLarge);
    if (legend) {
      panel.figure.insertBefore(legend, panel.plot);
    }
    charts.append(panel.figure);
    const size = isLarge || width < 480 ? width : Math.floor((width - 32) / 3);
    panel.figure.style.width = `${size}px`;
    panel.draw(size, isLarge ? 290 : 150);
  });
}

// The accuracies of a run: on the test environment, and on the others.
function accuracyCurves(state, run) {
  const { runs, palette } = state;
  const test = runs.quantities[0];
  const readTest = runs.reader(test);
  const others = d3.range(runs.environments.length).filter((env) => env !== runs.env[run]);
  const series = [
    ...others.map((env) => ({
      name: `${runs.environments[env]}, out split`,
      style: env,
      read: (record) => runs.outAccuracy(env, record),
    })),
    {
      name: `${runs.environments[runs.env[run]]} (test), in split`,
      style: -1,
      read: (record) => readTest(run, record),
    },
  ];
  const records = d3.range(runs.first[run], runs.first[run + 1]);
  const y = new LinearAxis("Accuracy", series.flatMap(({ read }) => records.map(read)).filter(Number.isFinite), {
    unit: "%",
  });
  const look = seriesLook(palette, series);
  const legend = element("p", undefined, "legend");
  series.forEach(({ name }, i) => {
    const item = legend.appendChild(element("span", name));
    const line = d3.create("svg").attr("class", "swatch line").attr("viewBox", "0 0 22 8").attr("aria-hidden", "true");
    line
      .append("path")
      .attr("d", "M0,4H22")
      .attr("stroke", look.color(i))
      .attr("stroke-dasharray", look.dash(i).join(" "));
    item.prepend(line.node());
  });
  const spec = recordPanel(state, run, "Accuracy over training", series, y);
  return { spec, look, legend, isLarge: true };
}

function metricCurves(state, run) {
  const { runs, palette } = state;
  const records = d3.range(runs.first[run], runs.first[run + 1]);
  const shown = runs.quantities.filter(
    ({ column }) => column && records.some((record) => Number.isFinite(runs.floats(column)[record])),
  );
  return shown.map((quantity) => {
    const values = runs.floats(quantity.column);
    const series = [{ name: quantity.label, style: 0, read: (record) => values[record] }];
    const y = quantityAxis(
      { label: "", unit: "" },
      records.map((record) => values[record]),
    );
    return {
      spec: recordPanel(state, run, quantity.label, series, y),
      look: seriesLook(palette, series),
      isLarge: false,
    };
  });
}

// Return a panel whose "runs" are series, each with a value per record of a run; the selected step is marked.
function recordPanel(state, run, title, series, y) {
  const { runs } = state;
  const records = d3.range(runs.first[run], runs.first[run + 1]);
  const x = new LinearAxis(
    series.length > 1 ? "Training step" : "",
    records.map((record) => runs.step(record)),
    { margin: 0.02, integer: true },
  );
  const marks = { run: [], record: [], x: [], y: [] };
  series.forEach(({ read }, i) => {
    for (const record of records.filter((record) => Number.isFinite(y.position(read(record))))) {
      marks.run.push(i);
      marks.record.push(record);
      marks.x.push(x.position(runs.step(record)));
      marks.y.push(y.position(read(record)));
    }
  });
  const selectedRecord = runs.selectedRecord(run, state.selection);
  const selected = d3.range(marks.run.length).filter((i) => marks.record[i] === selectedRecord);
  const note =
    series.length > 1 && selectedRecord >= 0
      ? `circles: the checkpoint at step ${runs.step(selectedRecord).toLocaleString("en-US")}`
      : "";
  return { title, note, x, y, marks, selected, isLine: true, rule: selected.length ? marks.x[selected[0]] : undefined };
}

function seriesLook(palette, series) {
  const look = makeLook(palette, (i) => series[i].style);
  return {
    ...look,
    color: (i) => (series[i].style < 0 ? look.ink : look.color(i)),
    dash: (i) => (series[i].style < 0 ? [] : look.dash(i)),
  };
}
