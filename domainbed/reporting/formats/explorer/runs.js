"use strict";

// The runs on one dataset: their columns, decoded when they are first needed, and the values that views show.

const MISSING_ACCURACY = 0xffff;

class Runs {
  constructor({ header, bytes }, dataset) {
    Object.assign(this, dataset); // title, environments, trials, draws, states, steps, folders
    this.header = header;
    this.bytes = bytes;
    this.columns = new Map();
    for (const name of ["algorithm", "env", "trial", "draw", "state"]) {
      this[name] = this.column(dataset.runs[name]);
    }
    this.length = this.algorithm.length;
    // The records of run i are those from first[i] to first[i + 1].
    this.first = new Uint32Array(this.length + 1);
    this.column(dataset.runs.records).forEach((n, i) => {
      this.first[i + 1] = this.first[i] + n;
    });
    this.quantities = [
      { name: "test", label: "Test accuracy", unit: "%", hint: "on the test environment, in split: as in the tables" },
      { name: "test_out", label: "Test accuracy, out split", unit: "%", hint: "on the test environment, out split" },
      {
        name: "in_domain",
        label: "In-domain accuracy",
        unit: "%",
        hint: "mean over the training environments, out splits",
      },
      {
        name: "score",
        label: "Selection score",
        unit: "%",
        hint: "by which the selection method ranks the runs of a trial",
      },
      ...this.metrics.map(({ name, column }) => ({
        name: `metric ${name}`,
        label: name,
        unit: "",
        hint: "recorded by the run",
        column,
      })),
    ];
  }

  column(place) {
    const key = place.join();
    if (!this.columns.has(key)) {
      this.columns.set(key, decodeColumn(this.bytes, place));
    }
    return this.columns.get(key);
  }

  floats(place) {
    const key = `floats ${place.join()}`;
    if (!this.columns.has(key)) {
      this.columns.set(key, decodeFloats(this.column(place)));
    }
    return this.columns.get(key);
  }

  percent(column, i) {
    return column[i] === MISSING_ACCURACY ? NaN : (100 * column[i]) / this.header.units;
  }

  step(record) {
    return this.steps[this.column(this.records.step)[record]];
  }

  // Return the accuracy of a record on the out split of an environment, in percent.
  outAccuracy(env, record) {
    return this.percent(this.column(this.records.out[env]), record);
  }

  // Return a function from a run and one of its records to a quantity; NaN if it is unknown.
  reader(quantity) {
    if (quantity.column) {
      const values = this.floats(quantity.column);
      return (run, record) => values[record];
    }
    const test = this.column(this.records.test);
    const out = this.records.out.map((place) => this.column(place));
    return {
      test: (run, record) => this.percent(test, record),
      test_out: (run, record) => this.percent(out[this.env[run]], record),
      in_domain: (run, record) => {
        let sum = 0;
        let n = 0;
        for (let env = 0; env < out.length; env++) {
          if (env !== this.env[run] && out[env][record] !== MISSING_ACCURACY) {
            sum += out[env][record];
            n += 1;
          }
        }
        return n ? (100 * sum) / n / this.header.units : NaN;
      },
      score: () => NaN, // of a run, not of a record
    }[quantity.name];
  }

  // Return a function from a run to a quantity at the record that a method selects; NaN if it selects none.
  selectedReader(quantity, selection) {
    const { record, score } = this.selections[selection];
    const records = this.column(record);
    if (quantity.name === "score") {
      const scores = this.column(score);
      return (run) => (records[run] ? this.percent(scores, run) : NaN);
    }
    const read = this.reader(quantity);
    return (run) => (records[run] ? read(run, this.first[run] + records[run] - 1) : NaN);
  }

  // Return the record of a run that a method selects, or -1.
  selectedRecord(run, selection) {
    const record = this.column(this.selections[selection].record)[run];
    return record ? this.first[run] + record - 1 : -1;
  }

  // Return whether a run is the best of its trial by a method: the tables report it.
  isBest(run, selection) {
    return this.column(this.selections[selection].best)[run] === 1;
  }

  // Return the value of a hyperparameter, or undefined for a run that has none.
  hparam(hparam, run) {
    return hparam.values[this.column(hparam.column)[run] - 1];
  }

  // Return the hyperparameters that differ between some runs, which all of their algorithms have.
  varyingHparams(runs) {
    const algorithms = new Set(runs.map((run) => this.algorithm[run]));
    return this.hparams.filter((hparam) => {
      const column = this.column(hparam.column);
      const values = new Set();
      const having = new Set();
      for (const run of runs) {
        if (column[run]) {
          values.add(column[run]);
          having.add(this.algorithm[run]);
        }
      }
      return values.size > 1 && having.size === algorithms.size;
    });
  }

  algorithmTitle(run) {
    return this.header.algorithms[this.algorithm[run]].title;
  }

  // Return the address of a run's folder.
  link(run) {
    return `${this.header.link}/${this.folders[run]}/`;
  }

  folderName(run) {
    const encoded = this.folders[run];
    try {
      const name = decodeURIComponent(encoded);
      return /^[\p{L}\p{N}\p{P}\p{S} ]*$/u.test(name) ? name : encoded;
    } catch {
      return encoded; // not UTF-8
    }
  }
}

// Format a number with three significant digits, or an accuracy in percent with the two that are stored.
function formatQuantity(value, unit) {
  if (Number.isNaN(value)) {
    return "–";
  }
  return unit === "%" ? value.toFixed(2) : formatNumber(value);
}

function formatNumber(value) {
  if (typeof value !== "number") {
    return String(value);
  }
  if (Number.isInteger(value) && Math.abs(value) < 1e6) {
    return value.toLocaleString("en-US").replace("-", "\u2212");
  }
  const text =
    Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  return text.replace(/e\+?(-?)(\d+)$/, (_, sign, digits) => `·10${superscript(sign + digits)}`).replace("-", "\u2212");
}

function superscript(text) {
  return [...text].map((c) => ({ "-": "⁻" })[c] ?? "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("");
}
