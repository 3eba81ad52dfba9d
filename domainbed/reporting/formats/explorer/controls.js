"use strict";

// The controls of the explorer: lists of choices, and a legend whose entries can be switched off.

function fillSelect(select, names, chosen) {
  select.replaceChildren(...names.map((name, i) => new Option(name, i, false, i === chosen)));
}

// Fill a group with a checkbox for each item: { title, value, style }, and a button that shows this one alone.
function fillChecks(fieldset, items, chosen, palette, onChange) {
  const list = fieldset.querySelector(".checks");
  const inputs = items.map(({ title, value, style }) => {
    const label = element("label", undefined, "check");
    const input = label.appendChild(element("input"));
    input.type = "checkbox";
    input.checked = chosen.has(value);
    if (style !== undefined) {
      label.append(swatch(palette, style));
    }
    label.append(element("span", title));
    input.addEventListener("change", () => notify());
    const only = element("button", "only", "only");
    only.type = "button";
    only.setAttribute("aria-label", `only ${title}`);
    only.addEventListener("click", () => {
      inputs.forEach((other) => (other.checked = other === input));
      notify();
    });
    const chip = element("span", undefined, "chip");
    chip.append(label, only);
    list.append(chip);
    return input;
  });
  const notify = () => onChange(new Set(items.filter((_, i) => inputs[i].checked).map(({ value }) => value)));
  const all = fieldset.querySelector("button.all");
  all.hidden = inputs.every((input) => input.checked);
  all.onclick = () => {
    inputs.forEach((input) => (input.checked = true));
    notify();
  };
}
