"use strict";

// One panel: points or lines on a canvas, axes and highlights in an SVG image above it.
//
// A panel's specification has a title and a note; its axes `x` and `y`; `marks`, with the position of each mark (from 0
// to 1) and its run; and a `look` (colors.js). With `isLine`, consecutive marks of a run are joined, and `selected` lists
// the marks at the selected steps, and `rule` is the position of a vertical line. Marks of `emphasized` runs are outlined.
// `diagonal` draws the line of equal values, and `summaries` are means with intervals.

const MARGIN = { top: 26, right: 12, bottom: 40, left: 44 };
const REACH = 28; // pixels from the pointer to the nearest mark
const CHARACTER_WIDTH = 6.2; // of a tick label, in pixels

class Panel {
  constructor(spec, look, label) {
    this.spec = spec;
    this.look = look;
    this.figure = document.createElement("figure");
    this.figure.className = "panel";
    const caption = this.figure.appendChild(document.createElement("figcaption"));
    const title = caption.appendChild(document.createElement("b"));
    title.textContent = spec.title;
    caption.append(" ", spec.note ?? "");
    this.plot = this.figure.appendChild(document.createElement("div"));
    this.plot.className = "plot";
    this.plot.tabIndex = -1;
    this.plot.setAttribute("role", "application");
    this.plot.setAttribute("aria-roledescription", "chart");
    this.plot.setAttribute("aria-label", label);
    this.plot.setAttribute("aria-describedby", "explorer-keys");
    this.canvas = this.plot.appendChild(document.createElement("canvas"));
    this.svg = d3.select(this.plot).append("svg").attr("aria-hidden", "true");
    const longest = spec.y.isCategory ? d3.max(spec.y.values, (value) => String(value).length) : 0;
    const left = Math.max(MARGIN.left, Math.min(150, 14 + CHARACTER_WIDTH * longest));
    this.margin = { ...MARGIN, left, top: spec.y.label ? MARGIN.top : 8, bottom: spec.x.label ? MARGIN.bottom : 26 };
  }

  draw(width, height) {
    this.width = width;
    this.height = height;
    const ratio = Math.max(2, window.devicePixelRatio); // sharp when it is printed
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    this.svg.attr("viewBox", `0 0 ${width} ${height}`).selectChildren().remove();
    this.drawAxes();
    drawMarks(this, context);
    this.overlay = this.svg.append("g").attr("class", "highlight");
  }

  px(position) {
    return this.margin.left + position * (this.width - this.margin.left - this.margin.right);
  }

  py(position) {
    return this.height - this.margin.bottom - position * (this.height - this.margin.bottom - this.margin.top);
  }

  drawAxes() {
    const { x, y } = this.spec;
    const axes = this.svg.append("g").attr("class", "axes");
    const left = this.px(0);
    const right = this.px(1);
    const bottom = this.py(0);
    for (const [position, label] of y.ticks(Math.max(2, Math.floor((bottom - this.py(1)) / 45)))) {
      axes
        .append("line")
        .attr("class", "grid")
        .attr("x1", left)
        .attr("x2", right)
        .attr("y1", this.py(position))
        .attr("y2", this.py(position));
      axes
        .append("text")
        .attr("class", "y")
        .attr("x", left - 7)
        .attr("y", this.py(position))
        .text(shorten(label, 22));
    }
    const ticks = x.ticks(Math.max(2, Math.floor((right - left) / 80)));
    const slot = (right - left) / Math.max(1, ticks.length);
    const isCrowded = d3.max(ticks, ([, label]) => label.length) * CHARACTER_WIDTH > slot;
    for (const [position, label] of ticks) {
      if (!x.isCategory) {
        axes
          .append("line")
          .attr("class", "grid")
          .attr("x1", this.px(position))
          .attr("x2", this.px(position))
          .attr("y1", this.py(1))
          .attr("y2", bottom);
      }
      const text = axes.append("text").text(shorten(label, isCrowded ? 7 : 14));
      text.attr("class", isCrowded ? "x tilted" : "x");
      text.attr(
        "transform",
        `translate(${this.px(position)},${bottom + (isCrowded ? 10 : 16)})${isCrowded ? " rotate(-30)" : ""}`,
      );
    }
    axes.append("line").attr("class", "base").attr("x1", left).attr("x2", right).attr("y1", bottom).attr("y2", bottom);
    if (y.label) {
      axes
        .append("text")
        .attr("class", "label")
        .attr("x", 0)
        .attr("y", 12)
        .text(`↑ ${shorten(y.label, 44)}`);
    }
    if (x.label) {
      axes
        .append("text")
        .attr("class", "label end")
        .attr("x", right)
        .attr("y", this.height - 4)
        .text(`${shorten(x.label, 44)} →`);
    }
  }

  // Return the mark nearest to a place on the plot, or -1.
  nearest(x, y) {
    const { marks } = this.spec;
    let best = -1;
    let least = REACH ** 2;
    for (let i = 0; i < marks.run.length; i++) {
      const distance = (this.px(marks.x[i]) - x) ** 2 + (this.py(marks.y[i]) - y) ** 2;
      if (distance < least) {
        [best, least] = [i, distance];
      }
    }
    return best;
  }

  // Return the mark that an arrow key moves to: the next one in that direction, of the same run if the marks form lines.
  neighbor(mark, key) {
    const { marks, isLine } = this.spec;
    const isHorizontal = key === "ArrowLeft" || key === "ArrowRight";
    const step = key === "ArrowRight" || key === "ArrowUp" ? 1 : -1;
    if (isLine && isHorizontal) {
      return marks.run[mark + step] === marks.run[mark] ? mark + step : mark;
    }
    let order = this.order(isHorizontal);
    if (isLine) {
      order = order.filter((i) => marks.x[i] === marks.x[mark]);
    }
    return order[order.indexOf(mark) + step] ?? mark;
  }

  // Return all marks from left to right, or from bottom to top.
  order(isHorizontal) {
    const { marks } = this.spec;
    const [first, second] = isHorizontal ? [marks.x, marks.y] : [marks.y, marks.x];
    this.orders ??= {};
    this.orders[isHorizontal] ??= d3.sort(
      d3.range(marks.run.length),
      (a, b) => first[a] - first[b] || second[a] - second[b] || a - b,
    );
    return this.orders[isHorizontal];
  }

  markOf(run) {
    return this.spec.marks.run.indexOf(run);
  }

  runOf(mark) {
    return this.spec.marks.run[mark];
  }

  // Show where a run is; `mark` is the mark that the pointer or the keyboard is at, if it is in this panel.
  highlight(run, mark = -1) {
    this.overlay?.selectChildren().remove();
    if (run === undefined) {
      return;
    }
    const { marks, isLine } = this.spec;
    const at = mark >= 0 ? mark : this.markOf(run);
    if (at < 0) {
      return;
    }
    if (isLine) {
      const places = d3.range(marks.run.length).filter((i) => marks.run[i] === run);
      const line = d3.line(
        (i) => this.px(marks.x[i]),
        (i) => this.py(marks.y[i]),
      );
      this.overlay.append("path").attr("d", line(places)).attr("stroke", this.look.color(run));
    }
    const ring = this.overlay.append("circle").attr("cx", this.px(marks.x[at])).attr("cy", this.py(marks.y[at]));
    ring.attr("r", 6.5).classed("here", mark >= 0);
  }

  place(mark) {
    return [this.px(this.spec.marks.x[mark]), this.py(this.spec.marks.y[mark])];
  }
}

function shorten(text, length) {
  return text.length > length ? `${text.slice(0, length / 2)}…${text.slice(-(length - 1) / 2)}` : text;
}
