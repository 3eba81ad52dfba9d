"use strict";

// Axes: each maps values to positions from 0 to 1, and lists ticks.

// Zero has no logarithm; it has a place of its own at the start of a logarithmic axis.
const ZERO_POSITION = 0.03;
const ZERO_MARGIN = 0.09;

class LinearAxis {
  constructor(label, values, { unit = "", margin = 0.04, integer = false } = {}) {
    let [low, high] = d3.extent(values);
    if (low === undefined) {
      [low, high] = [0, 1];
    }
    const space = margin * (high - low) || (unit === "%" ? 1 : Math.abs(low) * 0.05 || 0.5);
    this.label = unit ? `${label} (${unit})` : label;
    this.integer = integer;
    this.scale = d3.scaleLinear([low - space, high + space], [0, 1]);
  }

  position(value) {
    return this.scale(value);
  }

  ticks(count) {
    const format = this.scale.tickFormat(count);
    const ticks = this.scale.ticks(count).filter((tick) => !this.integer || Number.isInteger(tick));
    return ticks.map((tick) => [this.scale(tick), format(tick)]);
  }
}

class LogAxis {
  constructor(label, values) {
    const positive = values.filter((value) => value > 0);
    this.hasZero = positive.length < values.length;
    this.label = label;
    let [low, high] = d3.extent(positive);
    if (low === high) {
      [low, high] = [low / 2, high * 2];
    }
    const space = (high / low) ** 0.03;
    this.scale = d3.scaleLog([low / space, high * space], [this.hasZero ? ZERO_MARGIN : 0, 1]);
  }

  position(value) {
    return value > 0 ? this.scale(value) : value === 0 ? ZERO_POSITION : NaN;
  }

  ticks(count) {
    const [low, high] = this.scale.domain();
    const powers = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1).map((e) => 10 ** e);
    let ticks = powers.filter((tick) => low <= tick && tick <= high);
    if (ticks.length < 2) {
      ticks = powers.flatMap((tick) => [tick, 2 * tick, 5 * tick]).filter((tick) => low <= tick && tick <= high);
    }
    const stride = Math.ceil(ticks.length / count);
    ticks = ticks.filter((_, i) => i % stride === 0);
    const isPlain = ticks.every((tick) => tick >= 0.01 && tick < 10_000);
    const format = (tick) => (isPlain ? String(Number(tick.toPrecision(6))) : formatPower(tick));
    return [...(this.hasZero ? [[ZERO_POSITION, "0"]] : []), ...ticks.map((tick) => [this.scale(tick), format(tick)])];
  }
}

class CategoryAxis {
  constructor(label, values) {
    this.label = label;
    this.values = values;
    this.index = new Map(values.map((value, i) => [value, i]));
    this.isCategory = true;
  }

  // Runs of the same category are spread over 0.7 of its width, always in the same way.
  position(value, run) {
    const i = this.index.get(value);
    return i === undefined ? NaN : (i + 0.5 + (run === undefined ? 0 : 0.7 * (spread(run) - 0.5))) / this.values.length;
  }

  ticks() {
    return this.values.map((value, i) => [(i + 0.5) / this.values.length, formatNumber(value)]);
  }
}

// Return a number in [0, 1); those of consecutive integers are spread evenly (the golden ratio).
function spread(i) {
  return (i * 0.6180339887498949) % 1;
}

function formatPower(value) {
  const [mantissa, exponent] = value.toExponential(0).split("e");
  const power = `10${superscript(String(Number(exponent)))}`;
  return mantissa === "1" ? power : `${mantissa}·${power}`;
}

// Return the axis of a quantity: logarithmic if it is no accuracy and spans more than two decades.
function quantityAxis({ label, unit }, values) {
  const known = values.filter(Number.isFinite);
  const positive = known.filter((value) => value > 0);
  const [low, high] = d3.extent(positive);
  if (unit !== "%" && d3.min(known) >= 0 && high > 100 * low) {
    return new LogAxis(label, known);
  }
  return new LinearAxis(label, known, { unit });
}

function hparamAxis(hparam, values) {
  const levels = [...new Set(values.filter((value) => value !== undefined))];
  levels.sort(typeof levels[0] === "number" ? d3.ascending : (a, b) => d3.ascending(String(a), String(b)));
  if (hparam.scale === "category" || levels.length < 2) {
    return new CategoryAxis(hparam.name, levels);
  }
  // The runs shown may have a range that is too narrow for a tick of a logarithmic axis.
  const isWide = d3.max(levels) >= 3 * d3.min(levels.filter((level) => level > 0));
  return hparam.scale === "log" && isWide ? new LogAxis(hparam.name, levels) : new LinearAxis(hparam.name, levels);
}
