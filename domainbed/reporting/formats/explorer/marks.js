"use strict";

// The marks of a panel (panel.js), drawn on its canvas.

function drawMarks(panel, context) {
  if (panel.spec.diagonal) {
    drawDiagonal(panel, context);
  }
  if (panel.spec.isLine) {
    drawLines(panel, context);
  } else {
    drawPoints(panel, context);
  }
  drawSummaries(panel, context);
}

// Draw the line on which both quantities are equal; both axes are linear.
function drawDiagonal(panel, context) {
  const [xs, ys] = [panel.spec.x.scale.domain(), panel.spec.y.scale.domain()];
  const low = Math.max(xs[0], ys[0]);
  const high = Math.min(xs[1], ys[1]);
  if (low >= high) {
    return;
  }
  context.save();
  context.strokeStyle = panel.look.quiet;
  context.setLineDash([4, 4]);
  context.beginPath();
  context.moveTo(panel.px(panel.spec.x.position(low)), panel.py(panel.spec.y.position(low)));
  context.lineTo(panel.px(panel.spec.x.position(high)), panel.py(panel.spec.y.position(high)));
  context.stroke();
  context.restore();
}

// Draw a symbol for each mark, those of emphasized runs on top.
function drawPoints(panel, context) {
  const { marks, emphasized } = panel.spec;
  const size = Math.min(40, Math.max(16, 12_000 / marks.run.length)); // square pixels
  const paths = new Map();
  const drawAll = (area, isEmphasized, style) => {
    for (let i = 0; i < marks.run.length; i++) {
      const run = marks.run[i];
      if (emphasized(run) !== isEmphasized) {
        continue;
      }
      const symbol = panel.look.symbol(run);
      const key = `${symbol} ${area}`;
      if (!paths.has(key)) {
        paths.set(key, symbolPath(symbol, area));
      }
      context.setTransform(panel.canvas.width / panel.width, 0, 0, panel.canvas.height / panel.height, 0, 0);
      context.translate(panel.px(marks.x[i]), panel.py(marks.y[i]));
      context.fillStyle = panel.look.color(run);
      style();
      context.fill(paths.get(key));
      context.stroke(paths.get(key));
    }
  };
  context.save();
  drawAll(size, false, () => {
    context.globalAlpha = marks.run.length > 1000 ? 0.5 : 0.65;
    context.strokeStyle = panel.look.paper;
    context.lineWidth = 0.4;
  });
  drawAll(Math.max(36, 1.6 * size), true, () => {
    context.globalAlpha = 1;
    context.strokeStyle = panel.look.ink;
    context.lineWidth = 1.1;
  });
  context.restore();
}

// Draw means with their standard errors.
function drawSummaries(panel, context) {
  context.save();
  context.strokeStyle = panel.look.ink;
  for (const { x, low, high, y } of panel.spec.summaries ?? []) {
    context.lineWidth = 3;
    context.beginPath();
    context.moveTo(panel.px(x), panel.py(y) - 8);
    context.lineTo(panel.px(x), panel.py(y) + 8);
    context.stroke();
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(panel.px(low), panel.py(y));
    context.lineTo(panel.px(high), panel.py(y));
    context.stroke();
  }
  context.restore();
}

// Join two marks of a run that are not in consecutive records.
function drawGap(panel, context, after) {
  const { marks } = panel.spec;
  context.setLineDash([1, 4]);
  context.beginPath();
  context.moveTo(panel.px(marks.x[after - 1]), panel.py(marks.y[after - 1]));
  context.lineTo(panel.px(marks.x[after]), panel.py(marks.y[after]));
  context.stroke();
  context.fillStyle = context.strokeStyle;
  for (const i of [after - 1, after]) {
    context.beginPath();
    context.arc(panel.px(marks.x[i]), panel.py(marks.y[i]), 1.5, 0, 2 * Math.PI);
    context.fill();
  }
}

// Join the marks of a run, with dots and dotted lines where records between them have no value, and mark the selected
// ones.
function drawLines(panel, context) {
  const { marks, selected, rule } = panel.spec;
  const n = marks.run.length;
  context.save();
  if (rule !== undefined) {
    context.strokeStyle = panel.look.quiet;
    context.lineWidth = 0.8;
    context.beginPath();
    context.moveTo(panel.px(rule), panel.py(0));
    context.lineTo(panel.px(rule), panel.py(1));
    context.stroke();
  }
  context.lineJoin = "round";
  const nLines = new Set(marks.run).size;
  context.lineWidth = nLines > 60 ? 0.7 : 1.3;
  context.globalAlpha = nLines > 200 ? 0.25 : nLines > 60 ? 0.45 : 0.85;
  for (let i = 0; i < n;) {
    const run = marks.run[i];
    context.strokeStyle = panel.look.color(run);
    context.setLineDash(panel.look.dash(run));
    const first = i;
    const isJoined = (i) => i > first && marks.run[i] === run && marks.record[i] === marks.record[i - 1] + 1;
    context.beginPath();
    for (; i < n && marks.run[i] === run; i++) {
      context[isJoined(i) ? "lineTo" : "moveTo"](panel.px(marks.x[i]), panel.py(marks.y[i]));
    }
    context.stroke();
    for (let after = first + 1; after < i; after++) {
      if (!isJoined(after)) {
        drawGap(panel, context, after);
      }
    }
  }
  context.setLineDash([]);
  context.globalAlpha = 1;
  for (const i of selected) {
    context.beginPath();
    context.arc(panel.px(marks.x[i]), panel.py(marks.y[i]), nLines > 60 ? 2 : 3.2, 0, 2 * Math.PI);
    context.fillStyle = panel.look.paper;
    context.strokeStyle = panel.look.color(marks.run[i]);
    context.lineWidth = 1.5;
    context.fill();
    context.stroke();
  }
  context.restore();
}
