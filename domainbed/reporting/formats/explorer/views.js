"use strict";

// The views: each returns the specifications of its panels (panel.js) for the state of the explorer.
//
// A state has the `runs` of a dataset, the numbers of those `shown`, the number of the `selection` method, the
// `quantity`, the `algorithms` and `environments` that are shown, and the `palette`.

function byAlgorithm(state) {
  return (run) => state.runs.header.algorithms[state.runs.algorithm[run]].style;
}

function byEnvironment(state) {
  return (run) => state.runs.env[run];
}

function emphasize(state) {
  return (run) => state.runs.isBest(run, state.selection);
}

function makeMarks(runs, x, y) {
  const known = runs.filter((run) => Number.isFinite(x(run)) && Number.isFinite(y(run)));
  return { run: Uint32Array.from(known), x: Float32Array.from(known, x), y: Float32Array.from(known, y) };
}

// Return a panel for each test environment that has runs.
function perEnvironment(state, makePanel) {
  const panels = state.environments.map((env) => {
    const runs = state.shown.filter((run) => state.runs.env[run] === env);
    return runs.length ? makePanel(`test: ${state.runs.environments[env]}`, runs) : null;
  });
  return panels.filter((panel) => panel);
}

// The runs of each algorithm along a line, with the mean of the best run of each trial.
function overview(state) {
  const read = state.runs.selectedReader(state.quantity, state.selection);
  const title = (run) => state.runs.algorithmTitle(run);
  const titles = state.algorithms.map((i) => state.runs.header.algorithms[i].title).reverse();
  const x = quantityAxis(state.quantity, state.shown.map(read));
  const y = new CategoryAxis("", titles);
  const panels = perEnvironment(state, (name, runs) => {
    const marks = makeMarks(
      runs,
      (run) => x.position(read(run)),
      (run) => y.position(title(run), run),
    );
    const best = (name) => runs.filter((run) => title(run) === name && emphasize(state)(run));
    return {
      title: name,
      note: countDrawn(marks, runs),
      x,
      y,
      marks,
      emphasized: emphasize(state),
      summaries: titles.flatMap((name) => summarizeBest(best(name).map(read), x, y.position(name))),
    };
  });
  const height = (width) => Math.max(width * 0.5, 34 * titles.length + 50);
  return { panels, category: byAlgorithm(state), colored: "algorithms", height };
}

// Return the mean of the best runs of all trials with its standard error, as in the tables; empty without runs.
function summarizeBest(values, x, y) {
  const known = values.filter(Number.isFinite);
  if (!known.length) {
    return [];
  }
  const mean = d3.mean(known);
  const error = Math.sqrt(d3.mean(known, (value) => (value - mean) ** 2) / known.length);
  return [{ x: x.position(mean), low: x.position(mean - error), high: x.position(mean + error), y }];
}

function inAndOut(state) {
  const inDomain = state.runs.quantities.find(({ name }) => name === "in_domain");
  const readX = state.runs.selectedReader(inDomain, state.selection);
  const readY = state.runs.selectedReader(state.quantity, state.selection);
  const x = quantityAxis(inDomain, state.shown.map(readX));
  const y = quantityAxis(state.quantity, state.shown.map(readY));
  const panels = perEnvironment(state, (name, runs) => {
    const marks = makeMarks(
      runs,
      (run) => x.position(readX(run)),
      (run) => y.position(readY(run)),
    );
    return {
      title: name,
      note: `${countDrawn(marks, runs)}, ${correlation(runs.map(readX), runs.map(readY))}`,
      x,
      y,
      marks,
      emphasized: emphasize(state),
      diagonal: state.quantity.unit === "%",
    };
  });
  return { panels, category: byAlgorithm(state), colored: "algorithms", height: (width) => Math.min(width * 0.8, 360) };
}

function hyperparameters(state) {
  const read = state.runs.selectedReader(state.quantity, state.selection);
  const y = quantityAxis(state.quantity, state.shown.map(read));
  const panels = state.runs.varyingHparams(state.shown).map((hparam) => {
    const value = (run) => state.runs.hparam(hparam, run);
    const x = hparamAxis(hparam, state.shown.map(value));
    x.label = "";
    return {
      title: hparam.name,
      note: "",
      x,
      y,
      marks: makeMarks(
        state.shown,
        (run) => x.position(value(run), run),
        (run) => y.position(read(run)),
      ),
      emphasized: emphasize(state),
    };
  });
  // Accuracies differ more between test environments than between algorithms.
  const isSingle = state.environments.length === 1;
  return {
    panels,
    category: isSingle ? byAlgorithm(state) : byEnvironment(state),
    colored: isSingle ? "algorithms" : "environments",
    height: (width) => Math.min(width * 0.75, 340),
    note: hparamNote(state, panels.length),
  };
}

function hparamNote(state, n) {
  const reason = n ? "" : "No hyperparameter differs between these runs. ";
  const advice =
    "These are the hyperparameters that all of these algorithms have; choose one algorithm to see its own.";
  return reason + (state.algorithms.length > 1 ? advice : "");
}

function curves(state) {
  const { runs, shown, selection, quantity } = state;
  const read = runs.reader(quantity.name === "score" ? runs.quantities[0] : quantity);
  const records = shown.map((run) => d3.range(runs.first[run], runs.first[run + 1]));
  const x = new LinearAxis(
    "Training step",
    records.flat().map((record) => runs.step(record)),
    { margin: 0.02, integer: true },
  );
  const y = quantityAxis(
    quantity.name === "score" ? runs.quantities[0] : quantity,
    shown.flatMap((run, i) => records[i].map((record) => read(run, record))),
  );
  const panels = perEnvironment(state, (name, some) => {
    const marks = lineMarks(runs, some, x, y, read);
    const selected = d3
      .range(marks.run.length)
      .filter((i) => marks.record[i] === runs.selectedRecord(marks.run[i], selection));
    return { title: name, note: countDrawn(marks, some), x, y, marks, selected, isLine: true };
  });
  return { panels, category: byAlgorithm(state), colored: "algorithms", height: (width) => Math.min(width * 0.7, 380) };
}

// Return the marks of the records of runs; those without a value are skipped.
function lineMarks(runs, shown, x, y, read) {
  const marks = { run: [], record: [], x: [], y: [] };
  for (const run of shown) {
    for (let record = runs.first[run]; record < runs.first[run + 1]; record++) {
      const position = y.position(read(run, record));
      if (Number.isFinite(position)) {
        marks.run.push(run);
        marks.record.push(record);
        marks.x.push(x.position(runs.step(record)));
        marks.y.push(position);
      }
    }
  }
  return marks;
}

// Return the number of runs that are drawn, and that of those without a value.
function countDrawn(marks, runs) {
  const drawn = new Set(marks.run).size;
  const missing = runs.length - drawn;
  return count(drawn) + (missing ? `, ${missing.toLocaleString("en-US")} without a value` : "");
}

function count(n) {
  return `${n.toLocaleString("en-US")} ${n === 1 ? "run" : "runs"}`;
}

// Format Spearman's rank correlation.
function correlation(xs, ys) {
  const known = xs.map((x, i) => [x, ys[i]]).filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  const [a, b] = [ranks(known.map(([x]) => x)), ranks(known.map(([, y]) => y))];
  const [meanA, meanB] = [d3.mean(a), d3.mean(b)];
  const covariance = d3.sum(a, (rank, i) => (rank - meanA) * (b[i] - meanB));
  const scale = Math.sqrt(d3.sum(a, (rank) => (rank - meanA) ** 2) * d3.sum(b, (rank) => (rank - meanB) ** 2));
  return `ρ = ${scale ? (covariance / scale).toFixed(2).replace("-", "\u2212") : "?"}`;
}

// Return the rank of each value; equal values share their mean rank.
function ranks(values) {
  const order = d3.sort(d3.range(values.length), (i) => values[i]);
  const result = new Float64Array(values.length);
  for (let start = 0, end; start < order.length; start = end) {
    for (end = start + 1; end < order.length && values[order[end]] === values[order[start]]; end++);
    order.slice(start, end).forEach((i) => {
      result[i] = (start + end - 1) / 2;
    });
  }
  return [...result];
}
