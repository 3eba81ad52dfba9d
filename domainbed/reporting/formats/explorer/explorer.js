"use strict";

// The explorer: its state, and what it shows.

const VIEWS = { overview, scatter: inAndOut, hparams: hyperparameters, parallel: null, curves };

class Explorer {
  constructor(root, block) {
    this.root = root;
    this.block = block;
    this.palette = JSON.parse(root.dataset.palette);
    this.find = (selector) => root.querySelector(selector);
    this.panelsRoot = this.find(".panels");
    this.dialog = this.find("dialog");
    this.view = "overview";
    this.which = { curves: "best" }; // the runs that a view shows: "all" unless stated
    this.selection = 0;
    this.quantityName = "test";
    this.brushes = new Map();
    const { header } = block;
    fillSelect(
      this.find("[name=dataset]"),
      header.datasets.map(({ title }) => title),
      0,
    );
    fillSelect(this.find("[name=selection]"), header.selections, 0);
    this.find("[name=dataset]").parentElement.hidden = header.datasets.length === 1;
    this.navigator = new Navigator(this.find(".canvas"), this.find(".tooltip"), this.find(".announcement"), (run) =>
      this.open(run),
    );
    this.listen();
    this.setDataset(0);
    linkTables(this);
  }

  listen() {
    const on = (selector, event, act) =>
      this.root.querySelectorAll(selector).forEach((node) => node.addEventListener(event, act));
    on("[name=dataset]", "change", ({ target }) => this.setDataset(Number(target.value)));
    on("[name=selection]", "change", ({ target }) => {
      showMethod(document.getElementById(encodeName(this.block.header.selections[target.value])));
    });
    on("[name=quantity]", "change", ({ target }) =>
      this.set({ quantityName: this.runs.quantities[target.value].name }),
    );
    on("[name=which]", "change", ({ target }) => this.set({ which: { ...this.which, [this.view]: target.value } }));
    on("[name=view]", "change", ({ target }) => this.set({ view: target.value }));
    on("button.clear", "click", () => {
      this.brushes.clear();
      this.update();
    });
    // The method shown by the page's switch is that of the explorer.
    document.addEventListener("methodchange", ({ detail }) => {
      const i = this.block.header.selections.findIndex((name) => encodeName(name) === detail);
      if (i >= 0 && i !== this.selection) {
        this.set({ selection: i });
      }
    });
    new ResizeObserver(() => this.resize()).observe(this.panelsRoot);
    darkMode.addEventListener("change", () => this.update());
    for (const [event, isPrinted] of [
      ["beforeprint", true],
      ["afterprint", false],
    ]) {
      addEventListener(event, () => {
        isPrinting = isPrinted;
        this.update();
      });
    }
  }

  set(changes) {
    Object.assign(this, changes);
    this.update();
  }

  setDataset(i, algorithm) {
    const { header } = this.block;
    this.runs = new Runs(this.block, header.datasets[i]);
    this.brushes.clear();
    const algorithms = [...new Set(this.runs.algorithm)].sort((a, b) => a - b);
    this.algorithms = new Set(algorithms.includes(algorithm) ? [algorithm] : algorithms);
    this.environments = new Set(this.runs.env);
    this.find("[name=dataset]").value = i;
    fillSelect(
      this.find("[name=quantity]"),
      this.runs.quantities.map(({ label }) => label),
    );
    this.find(".omitted").hidden = !this.runs.omitted_metrics;
    this.find(".omitted").textContent = `${this.runs.omitted_metrics} more recorded metrics are not shown.`;
    this.update();
  }

  // Return the state that views are made from (views.js).
  get state() {
    const { runs, selection, palette } = this;
    const onlyBest = (this.which[this.view] ?? "all") === "best";
    const shown = d3
      .range(runs.length)
      .filter(
        (run) =>
          this.algorithms.has(runs.algorithm[run]) &&
          this.environments.has(runs.env[run]) &&
          runs.selectedRecord(run, selection) >= 0 &&
          (!onlyBest || runs.isBest(run, selection)),
      );
    const quantity = runs.quantities.find(({ name }) => name === this.quantityName) ?? runs.quantities[0];
    const sorted = (set) => [...set].sort((a, b) => a - b);
    return {
      runs,
      shown,
      selection,
      quantity,
      palette,
      algorithms: sorted(this.algorithms),
      environments: sorted(this.environments),
    };
  }

  update() {
    const { runs, view } = this;
    const state = (this.current = this.state);
    this.find("[name=selection]").value = this.selection;
    this.find("[name=quantity]").value = runs.quantities.indexOf(state.quantity);
    this.find("[name=quantity]").title = state.quantity.hint;
    this.find("[name=which]").value = this.which[view] ?? "all";
    this.find(`[name=view][value=${view}]`).checked = true;
    const made = VIEWS[view]?.(state) ?? {
      category: byAlgorithm(state),
      colored: "values",
      height: () => 440,
      note: hparamNote(state, runs.varyingHparams(state.shown).length),
    };
    const look = makeLook(this.palette, made.category);
    if (view === "parallel") {
      this.panels = state.shown.length ? [new ParallelPanel(state, look, this.brushes, () => this.summarize())] : [];
    } else {
      this.panels = made.panels
        .filter(({ marks }) => marks.run.length)
        .map(
          (spec) => new Panel(spec, look, `${spec.title}: ${state.quantity.label}, ${count(spec.marks.run.length)}`),
        );
    }
    this.height = made.height;
    this.panelsRoot.replaceChildren(...this.panels.map(({ figure }) => figure));
    this.panelsRoot.className = `panels n${this.panels.length === 4 ? 2 : Math.min(3, this.panels.length)}`;
    this.navigator.setPanels(this.panels, state);
    this.fillLegends(state, made.colored);
    this.find(".note-of-view").textContent = made.note ?? "";
    this.summarize();
    this.width = 0;
    this.resize();
  }

  fillLegends(state, colored) {
    const { runs } = this;
    // The entries are replaced; the one with the focus keeps it.
    const focused = document.activeElement?.closest(".explorer .legend :is(input, button)");
    const controlsOf = (fieldset) => [...fieldset.querySelectorAll("input, button")];
    const keep = focused && [focused.closest("fieldset"), controlsOf(focused.closest("fieldset")).indexOf(focused)];
    const algorithms = [...new Set(runs.algorithm)]
      .sort((a, b) => a - b)
      .map((value) => {
        const { title, style } = runs.header.algorithms[value];
        return { title, value, style: colored === "algorithms" ? style : undefined };
      });
    const environments = [...new Set(runs.env)]
      .sort((a, b) => a - b)
      .map((value) => {
        return { title: runs.environments[value], value, style: colored === "environments" ? value : undefined };
      });
    for (const [kind, items] of [
      ["algorithms", algorithms],
      ["environments", environments],
    ]) {
      const fieldset = this.find(`.${kind}`);
      fieldset.querySelector(".checks").replaceChildren();
      fillChecks(fieldset, items, this[kind], this.palette, (chosen) => this.set({ [kind]: chosen }));
    }
    if (keep) {
      const controls = controlsOf(keep[0]);
      (controls[keep[1]].hidden ? controls[0] : controls[keep[1]]).focus();
    }
  }

  summarize() {
    const { runs, shown, selection, quantity } = this.current;
    const method = runs.header.selections[selection];
    const read = runs.selectedReader(quantity, selection);
    const missing = shown.filter((run) => !Number.isFinite(read(run))).length;
    let text = `${count(shown.length)} on ${runs.title}, each at the step selected by ${method}.`;
    text += missing ? ` Of these, ${missing.toLocaleString("en-US")} have no ${quantity.label}.` : "";
    if (this.view === "parallel" && this.brushes.size && shown.length) {
      const values = this.panels[0].activeRuns().map(read);
      const [median, low, high] = [d3.median(values), ...d3.extent(values)].map((value) =>
        formatQuantity(value ?? NaN, quantity.unit),
      );
      text = `${values.length.toLocaleString("en-US")} of ${count(this.panels[0].runs.length)} within the brushes. ${quantity.label}: median ${median}, from ${low} to ${high}.`;
    }
    this.find(".clear").hidden = this.view !== "parallel" || !this.brushes.size;
    this.find(".summary").textContent = shown.length ? text : `No runs of ${runs.title} match.`;
    const hints = {
      overview:
        "Each point is a run. Outlined: the best run of each trial, which the tables report. Bars: their mean and standard error.",
      scatter:
        "Each point is a run. Outlined: the best run of each trial, which the tables report. Dashed: equal accuracies. ρ: Spearman’s rank correlation.",
      hparams: "Each point is a run. Outlined: the best run of each trial, which the tables report.",
      parallel: "Each line is a run, colored by the last axis. Drag along an axis to select a range.",
      curves: "Each line is a run, dotted where records have no value. Circles: the checkpoint chosen by the selection method.",
    };
    this.find(".hint-of-view").textContent = hints[this.view];
  }

  // Draw the panels, if the width has changed.
  resize() {
    const width = this.panels[0]?.plot.clientWidth;
    if (!width || width === this.width) {
      return;
    }
    this.width = width;
    for (const panel of this.panels) {
      const drawn = Math.max(width, panel.minWidth ?? 0);
      panel.draw(drawn, this.height(drawn));
    }
  }

  open(run) {
    this.dialog.addEventListener("close", this.navigator.remember(), { once: true });
    openRun(this.dialog, this.current, run);
  }

  // Open a run of any dataset.
  openRunOf(dataset, run) {
    const runs = new Runs(this.block, this.block.header.datasets[dataset]);
    openRun(this.dialog, { ...this.current, runs, quantity: runs.quantities[0] }, run);
  }
}

// Encode a name as in the ids of the page (formats/base.py).
function encodeName(name) {
  return encodeURIComponent(name).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

async function startExplorer() {
  const root = document.getElementById("/explore");
  const status = root.querySelector(".status");
  try {
    const explorer = new Explorer(root, await decodeBlock(document.getElementById("explorer-data").textContent));
    const shown = methods.find((method) => !method.hidden);
    document.dispatchEvent(new CustomEvent("methodchange", { detail: shown.id }));
    status.hidden = true;
    root.querySelector(".body").hidden = false;
    explorer.resize();
    performance.mark("explorer-ready");
    return explorer;
  } catch (error) {
    status.textContent = `This browser cannot show the runs: ${error.message}`;
    throw error;
  }
}

document.getElementById("/explore").hidden = false;
startExplorer();
