// Turn stored values into grey levels: the display functions of PS3.3 C.11.2, as a table over the 16-bit values.

// OHIF's presets for keys 1 to 5 (platform/core/src/defaults/windowLevelPresets.js), in Hounsfield units.
export const CT_PRESETS = [
  { name: "Soft tissue", centre: 40, width: 400 },
  { name: "Lung", centre: -600, width: 1500 },
  { name: "Liver", centre: 90, width: 150 },
  { name: "Bone", centre: 480, width: 2500 },
  { name: "Brain", centre: 40, width: 80 },
].map((preset) => ({ ...preset, function: "LINEAR" }));

// Grey level 0..255 of one value in modality units.
export function greyLevel(value, { centre, width, function: shape }) {
  if (shape === "SIGMOID") return 255 / (1 + Math.exp((-4 * (value - centre)) / width));
  // C.11.2.1.2.1: LINEAR has the half-unit offsets, LINEAR_EXACT has none.
  const exact = shape === "LINEAR_EXACT";
  const span = exact ? width : width - 1;
  const middle = exact ? centre : centre - 0.5;
  if (value <= middle - span / 2) return 0;
  if (value > middle + span / 2) return 255;
  // The order of operations is that of dicom_io/voi.py, so that both cut to the same whole numbers.
  return 255 - (middle / span + 0.5) * 255 + value * (255 / span);
}

// One packed grey pixel for each stored value; `frame` gives the line from stored values to modality units.
export function table(frame, setting, inverted) {
  const packed = new Uint32Array(frame.highest + 1);
  const lut = setting.entries;
  for (let stored = 0; stored < packed.length; stored++) {
    const value = stored * frame.slope + frame.intercept;
    let level = lut
      ? lut[Math.min(lut.length - 1, Math.max(0, Math.floor(value - setting.first_mapped)))]
      : Math.min(255, Math.max(0, Math.floor(greyLevel(value, setting))));
    if (inverted) level = 255 - level;
    packed[stored] = 0xff000000 | (level << 16) | (level << 8) | level;
  }
  return packed;
}

// A window from the 0.5th to the 99.5th percentile, for a file that gives none.
export function automatic(frame) {
  const counts = new Uint32Array(frame.highest + 1);
  for (const stored of frame.pixels) counts[stored]++;
  const at = (share) => {
    let left = share * frame.pixels.length;
    let stored = 0;
    while (stored < counts.length - 1 && (left -= counts[stored]) > 0) stored++;
    return stored * frame.slope + frame.intercept;
  };
  const low = at(0.005);
  const high = at(0.995);
  return { centre: (low + high) / 2, width: Math.max(high - low, frame.slope), function: "LINEAR_EXACT" };
}

// What the window list offers for a frame; the first entry is how the file wants to be shown.
export function presets(frame, modality) {
  if (frame.kind === "rgb8") return [{ key: "colour", name: "Colour image", setting: null }];
  const offered = [];
  frame.voi_luts.forEach((lut, index) => {
    offered.push({ key: `lut-${index}`, name: lut.explanation || "Lookup table of the file", setting: lut });
  });
  frame.windows.forEach((window, index) => {
    const name = window.explanation || (frame.windows.length > 1 ? `Window ${index + 1} of the file` : "Window of the file");
    offered.push({ key: `file-${index}`, name, setting: window });
  });
  offered.push({ key: "automatic", name: "Automatic", setting: automatic(frame) });
  const [low, high] = [frame.minimum, frame.maximum];
  offered.push({
    key: "full",
    name: "Full range",
    setting: { centre: (low + high) / 2, width: Math.max(high - low, frame.slope), function: "LINEAR_EXACT" },
  });
  if (modality === "CT") {
    CT_PRESETS.forEach((preset, index) => {
      offered.push({ key: `ct-${index + 1}`, name: `${preset.name} (${index + 1})`, setting: preset });
    });
  }
  return offered;
}
