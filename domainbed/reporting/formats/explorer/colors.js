"use strict";

// The look of runs: a color, a symbol and a line style for each algorithm or environment, as in the plots in files.

const SYMBOLS = [
  [d3.symbolCircle, 0],
  [d3.symbolSquare, 0],
  [d3.symbolTriangle, 0],
  [d3.symbolDiamond, 0],
  [d3.symbolTriangle, 180],
  [d3.symbolCross, 0],
  [d3.symbolCross, 45],
  [d3.symbolStar, 0],
];
const DASHES = [[], [6, 2], [1.5, 1.5], [7, 2, 1.5, 2], [3, 1.5], [7, 2, 1.5, 2, 1.5, 2]];
const MIN_LIGHTNESS = 62; // of colors on a dark background
const MAX_LIGHTNESS = 78; // of colors on a light background

const darkMode = matchMedia("(prefers-color-scheme: dark)");
let isPrinting = false; // on white paper

function isDark() {
  return darkMode.matches && !isPrinting;
}

// Return the color of the i-th category, readable on the background.
function categoryColor(palette, i) {
  const color = d3.lch(palette[i % palette.length]);
  color.l = isDark() ? Math.max(color.l, MIN_LIGHTNESS) : Math.min(color.l, MAX_LIGHTNESS);
  return color.formatHex();
}

// Return the color of a value from 0 (low) to 1 (high).
function valueColor(t) {
  return isDark() ? d3.interpolateViridis(0.25 + 0.75 * t) : d3.interpolateViridis(0.92 - 0.87 * t);
}

// Return how to draw runs; each is drawn in the style of its category, given by number.
function makeLook(palette, category) {
  const colors = new Map();
  return {
    paper: isDark() ? "#15171a" : "#ffffff",
    ink: isDark() ? "#f2f3f5" : "#1c1e21",
    quiet: isDark() ? "#a0a6ad" : "#5c6168",
    symbol: (run) => category(run) % SYMBOLS.length,
    dash: (run) => DASHES[category(run) % DASHES.length],
    color: (run) => {
      const i = category(run);
      if (!colors.has(i)) {
        colors.set(i, categoryColor(palette, i));
      }
      return colors.get(i);
    },
  };
}

// Return the outline of a symbol around the origin.
function symbolPath(symbol, area) {
  const [type, degrees] = SYMBOLS[symbol];
  const path = new Path2D();
  path.addPath(new Path2D(d3.symbol(type, area)()), new DOMMatrix().rotate(degrees));
  return path;
}

// Return a small picture of the style of a category, for a legend.
function swatch(palette, i) {
  const svg = d3.create("svg").attr("class", "swatch").attr("viewBox", "-7 -7 14 14").attr("aria-hidden", "true");
  const [type, degrees] = SYMBOLS[i % SYMBOLS.length];
  svg
    .append("path")
    .attr("d", d3.symbol(type, 70)())
    .attr("transform", `rotate(${degrees})`)
    .attr("fill", categoryColor(palette, i));
  return svg.node();
}
