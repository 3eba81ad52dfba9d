"use strict";

// The pointer and the keyboard on the panels: they visit marks, whose runs are shown in a tooltip and can be opened.

class Navigator {
  // `root` contains the panels and the tooltip; `announcement` is read by screen readers; `onOpen` is called with a run.
  constructor(root, tooltip, announcement, onOpen) {
    Object.assign(this, { root, tooltip, announcement, onOpen, panels: [] });
    root.addEventListener("pointermove", (event) => this.point(event));
    root.addEventListener("pointerleave", () => this.leave());
    root.addEventListener("click", (event) => this.click(event));
    root.addEventListener("keydown", (event) => this.press(event));
    root.addEventListener("focusin", (event) => this.focus(event));
    root.addEventListener("focusout", () => this.leave());
  }

  // Navigate these panels of a state (views.js); the tooltip lists the hyperparameters that differ between its runs.
  setPanels(panels, state) {
    this.leave();
    Object.assign(this, { panels, state, varying: state.runs.varyingHparams(state.shown) });
    panels.forEach(({ plot }, i) => (plot.tabIndex = i ? -1 : 0));
  }

  // Return the panel of an event, and the place in it.
  locate(event) {
    const panel = this.panels.find(({ plot }) => plot.contains(event.target));
    const box = panel?.canvas.getBoundingClientRect();
    return (
      panel && {
        panel,
        x: ((event.clientX - box.left) * panel.width) / box.width,
        y: ((event.clientY - box.top) * panel.height) / box.height,
      }
    );
  }

  point(event) {
    const at = this.locate(event);
    const mark = at ? at.panel.nearest(at.x, at.y) : -1;
    if (mark < 0) {
      this.leave();
    } else {
      this.visit(at.panel, mark);
    }
  }

  click(event) {
    const at = this.locate(event);
    const mark = at && !event.target.closest(".brush .selection, .brush .handle") ? at.panel.nearest(at.x, at.y) : -1;
    if (mark >= 0) {
      this.visit(at.panel, mark);
      this.onOpen(at.panel.runOf(mark));
    }
  }

  // Show a mark, on which the pointer or the keyboard is.
  visit(panel, mark) {
    if (this.visited && this.visited.panel === panel && this.visited.mark === mark) {
      return;
    }
    this.visited = { panel, mark };
    const run = panel.runOf(mark);
    this.panels.forEach((other) => other.highlight(run, other === panel ? mark : -1));
    fillTooltip(this.tooltip, this.state, run, this.varying);
    const [x, y] = panel.place(mark);
    const box = panel.canvas.getBoundingClientRect();
    const scale = box.width / panel.width;
    const container = this.root.getBoundingClientRect();
    placeTooltip(this.tooltip, box.left - container.left + x * scale, box.top - container.top + y * scale);
  }

  leave() {
    this.visited = undefined;
    this.tooltip.hidden = true;
    this.panels?.forEach((panel) => panel.highlight());
  }

  // The keys on a panel: arrows from run to run, PageUp and PageDown from panel to panel, Enter, Escape.
  press(event) {
    const i = this.panels.findIndex(({ plot }) => plot === event.target);
    if (i < 0) {
      return;
    }
    const panel = this.panels[i];
    const mark = this.visited?.panel === panel ? this.visited.mark : undefined;
    if (event.key === "PageUp" || event.key === "PageDown") {
      this.panels[i + (event.key === "PageUp" ? -1 : 1)]?.plot.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      if (mark !== undefined) {
        this.onOpen(panel.runOf(mark));
      }
    } else if (event.key === "Escape") {
      this.leave();
    } else if (event.key === "Home" || event.key === "End") {
      this.say(panel, panel.order(true).at(event.key === "Home" ? 0 : -1));
    } else if (event.key.startsWith("Arrow")) {
      this.say(panel, mark === undefined ? panel.order(true)[0] : panel.neighbor(mark, event.key));
    } else {
      return;
    }
    event.preventDefault();
  }

  // Visit a mark by keyboard: a screen reader reads the run.
  say(panel, mark) {
    if (mark === undefined) {
      return;
    }
    this.visit(panel, mark);
    const { title, facts, quantities, hparams } = describeRun(this.state, panel.runOf(mark));
    const varying = new Set(this.varying.map(({ name }) => name));
    const values = hparams
      .filter(([name]) => varying.has(name))
      .map(([name, value]) => `${name} ${formatNumber(value)}`);
    this.announcement.textContent = [
      title,
      facts,
      ...quantities.map(([label, text]) => `${label} ${text}`),
      ...values,
    ].join("; ");
  }

  focus(event) {
    const panel = this.panels.find(({ plot }) => plot === event.target);
    if (panel) {
      this.panels.forEach(({ plot }) => (plot.tabIndex = plot === panel.plot ? 0 : -1));
    }
  }

  // Return a function that visits the current mark again.
  remember() {
    const { visited } = this;
    return () => visited && this.panels.includes(visited.panel) && this.visit(visited.panel, visited.mark);
  }
}
