"use strict";

// Parallel coordinates: a line per run across its hyperparameters, colored by the last axis, a quantity.
//
// Runs outside of a brush on any axis are gray. Brushes are dragged, or moved with the arrow keys by their two handles.

const TOP = 72; // pixels above the axes, for their titles
const HANDLE_STEP = 0.02; // of the axis, per press of an arrow key

// Return the axes: each has a title, `position(run)` and `ticks`.
function parallelAxes(state) {
  const { runs, shown, quantity, selection } = state;
  const read = runs.selectedReader(quantity, selection);
  const axes = [];
  const addCategories = (title, values, value) => {
    if (values.length > 1) {
      const axis = new CategoryAxis(title, values.toReversed()); // the first one at the top
      axes.push({ title, axis, position: (run) => axis.position(value(run), run) });
    }
  };
  addCategories(
    "algorithm",
    state.algorithms.map((i) => runs.header.algorithms[i].title),
    (run) => runs.algorithmTitle(run),
  );
  addCategories(
    "test environment",
    state.environments.map((env) => runs.environments[env]),
    (run) => runs.environments[runs.env[run]],
  );
  for (const hparam of runs.varyingHparams(shown)) {
    const value = (run) => runs.hparam(hparam, run);
    const axis = hparamAxis(hparam, shown.map(value));
    axes.push({ title: hparam.name, axis, position: (run) => axis.position(value(run), run) });
  }
  const axis = quantityAxis(quantity, shown.map(read));
  axes.push({ title: axis.label, axis, position: (run) => axis.position(read(run)), isQuantity: true });
  return axes;
}

class ParallelPanel {
  // `brushes` maps the titles of axes to [low, high], from 0 to 1; it is kept when the panel is replaced.
  constructor(state, look, brushes, onBrush) {
    this.look = look;
    this.brushes = brushes;
    this.onBrush = onBrush;
    this.axes = parallelAxes(state);
    const places = state.shown.map((run) => Float32Array.from(this.axes, ({ position }) => position(run)));
    const known = d3.range(state.shown.length).filter((i) => places[i].every(Number.isFinite));
    // In the order of drawing: the highest last.
    known.sort((a, b) => places[a].at(-1) - places[b].at(-1) || a - b);
    this.runs = known.map((i) => state.shown[i]);
    this.places = known.map((i) => places[i]);
    this.figure = document.createElement("figure");
    this.figure.className = "panel parallel";
    this.plot = this.figure.appendChild(document.createElement("div"));
    this.plot.className = "plot";
    this.plot.tabIndex = -1;
    this.plot.setAttribute("role", "application");
    this.plot.setAttribute("aria-roledescription", "parallel coordinates");
    this.plot.setAttribute("aria-label", `Runs by ${this.axes.map(({ title }) => title).join(", ")}`);
    this.plot.setAttribute("aria-describedby", "explorer-keys");
    this.canvas = this.plot.appendChild(document.createElement("canvas"));
    this.svg = d3.select(this.plot).append("svg");
  }

  get minWidth() {
    return 74 * this.axes.length;
  }

  x(i) {
    return 34 + (i * (this.width - 34 - 58)) / Math.max(1, this.axes.length - 1);
  }

  y(position) {
    return this.height - 16 - position * (this.height - 16 - TOP);
  }

  draw(width, height) {
    this.width = width;
    this.height = height;
    const ratio = Math.max(2, window.devicePixelRatio);
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    // On a phone, many axes are wider than the page, and scroll.
    const cssWidth = width > this.plot.clientWidth ? `${width}px` : "";
    this.canvas.style.width = cssWidth;
    this.svg.style("width", cssWidth || null);
    this.svg.attr("viewBox", `0 0 ${width} ${height}`).selectChildren().remove();
    this.overlay = this.svg.append("g").attr("class", "highlight");
    this.drawLines();
    this.axes.forEach((axis, i) => this.drawAxis(axis, i));
  }

  drawLines() {
    const context = this.canvas.getContext("2d");
    const active = this.places.map((place) => this.isActive(place));
    this.nActive = d3.sum(active);
    context.setTransform(this.canvas.width / this.width, 0, 0, this.canvas.height / this.height, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    context.lineWidth = this.nActive > 300 ? 0.8 : 1.2;
    for (const pass of [false, true]) {
      const alpha = Math.max(0.12, Math.min(0.9, 120 / this.nActive));
      context.globalAlpha = pass ? alpha : 0.05;
      this.places.forEach((place, i) => {
        if (active[i] !== pass) {
          return;
        }
        context.strokeStyle = pass ? valueColor(place.at(-1)) : this.look.quiet;
        context.beginPath();
        place.forEach((position, axis) => context[axis ? "lineTo" : "moveTo"](this.x(axis), this.y(position)));
        context.stroke();
      });
    }
    context.globalAlpha = 1;
    // The colors, along the last axis.
    const x = this.x(this.axes.length - 1);
    for (let y = this.y(1); y < this.y(0); y++) {
      context.fillStyle = valueColor((this.y(0) - y) / (this.y(0) - this.y(1)));
      context.fillRect(x - 2.5, y, 5, 1.5);
    }
  }

  isActive(place) {
    return this.axes.every(({ title }, i) => {
      const brush = this.brushes.get(title);
      return !brush || (brush[0] <= place[i] && place[i] <= brush[1]);
    });
  }

  activeRuns() {
    return this.runs.filter((_, i) => this.isActive(this.places[i]));
  }

  drawAxis({ title, axis, isQuantity }, i) {
    const group = this.svg
      .append("g")
      .attr("class", "axes parallel")
      .attr("transform", `translate(${this.x(i)},0)`);
    const isTilted = i < this.axes.length - 1;
    const label = group.append("text").attr("class", isTilted ? "label" : "label end");
    label
      .attr(
        "transform",
        `translate(${isTilted ? -4 : 50},${isTilted ? TOP - 14 : 12})${isTilted ? " rotate(-18)" : ""}`,
      )
      .text(shorten(title, 20));
    group.append("line").attr("class", "base").attr("y1", this.y(0)).attr("y2", this.y(1));
    for (const [position, text] of axis.ticks(6)) {
      group
        .append("text")
        .attr("class", isQuantity ? "right" : "tick")
        .attr("x", 7)
        .attr("y", this.y(position))
        .text(shorten(text, 10));
    }
    const brush = d3.brushY().extent([
      [-14, this.y(1)],
      [14, this.y(0)],
    ]);
    const brushGroup = group.append("g").attr("class", "brush").call(brush);
    const handles = [0, 1].map((side) =>
      this.addHandle(group, title, side, (range) =>
        brushGroup.call(brush.move, range?.map((p) => this.y(p)).reverse()),
      ),
    );
    const current = this.brushes.get(title);
    if (current) {
      brushGroup.call(brush.move, current.map((position) => this.y(position)).reverse());
    }
    const show = () => handles.forEach((handle) => handle());
    show();
    brush.on("brush end", ({ selection }) => {
      if (selection) {
        this.brushes.set(title, selection.map((y) => (this.y(0) - y) / (this.y(0) - this.y(1))).reverse());
      } else {
        this.brushes.delete(title);
      }
      show();
      this.drawLines();
      this.onBrush(this);
    });
  }

  // Add the lower (0) or upper (1) handle of an axis' brush, for the keyboard. Return a function that updates it.
  addHandle(group, title, side, move) {
    const handle = group.append("path").attr("class", "limit").attr("tabindex", 0).attr("role", "slider");
    handle.attr("d", side ? "M-6,-2L6,-2L0,-9Z" : "M-6,2L6,2L0,9Z").attr("aria-orientation", "vertical");
    handle
      .attr("aria-label", `${title}, ${side ? "upper" : "lower"} limit`)
      .attr("aria-valuemin", 0)
      .attr("aria-valuemax", 100);
    const range = () => this.brushes.get(title) ?? [0, 1];
    handle.on("keydown", (event) => {
      const steps = {
        ArrowUp: 1,
        ArrowRight: 1,
        ArrowDown: -1,
        ArrowLeft: -1,
        PageUp: 5,
        PageDown: -5,
        Home: -100,
        End: 100,
      }[event.key];
      const isClearing = event.key === "Escape" || event.key === "Delete";
      if (steps === undefined && !isClearing) {
        return;
      }
      event.preventDefault();
      event.stopPropagation();
      const next = [...range()];
      next[side] = Math.max(side ? next[0] : 0, Math.min(side ? 1 : next[1], next[side] + steps * HANDLE_STEP));
      move(isClearing || (next[0] === 0 && next[1] === 1) ? null : next);
    });
    return () => {
      const position = range()[side];
      handle.attr("transform", `translate(0,${this.y(position)})`).attr("aria-valuenow", Math.round(100 * position));
    };
  }

  // Return the run whose line is nearest to a place on the plot, by position; -1 for none.
  nearest(x, y) {
    const right = d3.range(1, this.axes.length).find((i) => x <= this.x(i)) ?? this.axes.length - 1;
    const left = Math.max(0, right - 1);
    const t = right === left ? 0 : Math.min(1, Math.max(0, (x - this.x(left)) / (this.x(right) - this.x(left))));
    let best = -1;
    let least = 14;
    this.places.forEach((place, i) => {
      const distance = Math.abs(this.y(place[left] + t * (place[right] - place[left])) - y);
      if (distance <= least && this.isActive(place)) {
        [best, least] = [i, distance];
      }
    });
    return best;
  }

  // The arrow keys move along the quantity, among the runs within all brushes.
  neighbor(mark, key) {
    const step = key === "ArrowRight" || key === "ArrowUp" ? 1 : -1;
    let next = mark + step;
    while (this.places[next] && !this.isActive(this.places[next])) {
      next += step;
    }
    return this.places[next] ? next : mark;
  }

  order() {
    return d3.range(this.runs.length).filter((i) => this.isActive(this.places[i]));
  }

  markOf(run) {
    return this.runs.indexOf(run);
  }

  runOf(mark) {
    return this.runs[mark];
  }

  highlight(run) {
    this.overlay?.selectChildren().remove();
    const mark = run === undefined ? -1 : this.markOf(run);
    if (mark >= 0) {
      const line = d3.line(
        (_, i) => this.x(i),
        (position) => this.y(position),
      );
      this.overlay
        .append("path")
        .attr("d", line(this.places[mark]))
        .attr("stroke", valueColor(this.places[mark].at(-1)));
    }
  }

  place(mark) {
    return [this.x(this.axes.length - 1), this.y(this.places[mark].at(-1))];
  }
}
