// Make elements from values. Text is always set as text: a patient's name is never read as markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const ICONS = {
  left: "M4 5v5h5M4.5 10A8 8 0 1 1 4 14",
  right: "M20 5v5h-5M19.5 10A8 8 0 1 0 20 14",
  horizontal: "M12 3v18M9 7 4 17h5zM15 7l5 10h-5z",
  vertical: "M3 12h18M7 9l10-5v5zM7 15l10 5v-5z",
  play: "M7 4v16l13-8z",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13zM15.5 15.5 21 21",
};

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

// DICOM writes a name as FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX, with other scripts after "=" (PS3.5 6.2.1).
export function personName(name) {
  if (!name) return "Name not given";
  const [family, given, middle] = name.split("=")[0].split("^");
  return [family, [given, middle].filter(Boolean).join(" ")].filter(Boolean).join(", ") || "Name not given";
}

export function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

export function number(value) {
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  return size >= 100 || Number.isInteger(value) ? value.toFixed(0) : size >= 1 ? value.toFixed(1) : value.toPrecision(2);
}

// A probability in hundredths; near certainty in thousandths, where thresholds may lie, and never rounded up to it.
export function percent(probability) {
  const rest = Math.min(probability, 1 - probability);
  if (rest > 0 && rest < 0.001) return probability < 0.5 ? "< 0.1\u00a0%" : "> 99.9\u00a0%";
  return `${(probability * 100).toFixed(rest > 0 && rest < 0.01 ? 1 : 0)}\u00a0%`;
}
