// Draw one frame on a canvas: window, zoom, pan, turns and a heat map over it. Knows nothing of studies.

import { table } from "./window.js";

const SMALLEST_ZOOM = 0.02;
const LARGEST_ZOOM = 40;
// Plasma (matplotlib, CC0): lightness rises evenly, and no grey of the image is one of its colours.
const PLASMA = ["#0d0887", "#5c01a6", "#9c179e", "#cc4778", "#ed7953", "#fdb42f", "#f0f921"];
export const FAINTEST_SHOWN = 0.3; // share of the scale under which the heat map lets the image through untouched

export class Viewport {
  constructor(canvas, { changed }) {
    this.canvas = canvas;
    this.changed = changed; // called after the user moved window or view, with what changed
    this.tool = "window";
    this.frame = null;
    this.heat = null;
    this.opacity = 0.4;
    this.picture = document.createElement("canvas");
    this.reset();
    this.listen();
  }

  // Follow the size of the box that the canvas has been put into.
  watch() {
    new ResizeObserver(() => this.resize()).observe(this.canvas.parentElement);
  }

  reset() {
    this.fitted = true;
    this.zoom = 1; // canvas pixels a column
    this.pan = { x: 0, y: 0 };
    this.turns = 0; // quarter turns clockwise
    this.mirrored = false;
    this.upended = false;
    this.inverted = false;
  }

  show(frame, setting) {
    const sameShape = this.frame && this.frame.rows === frame.rows && this.frame.columns === frame.columns;
    this.frame = frame;
    this.setting = setting;
    if (!sameShape) this.fit();
    this.paint();
  }

  clear() {
    this.frame = null;
    this.heat = null;
    this.draw();
  }

  apply(setting) {
    this.setting = setting;
    this.paint();
  }

  invert() {
    this.inverted = !this.inverted;
    this.paint();
  }

  turn(quarters) {
    this.turns = (this.turns + quarters + 4) % 4;
    if (this.fitted) this.fit();
    this.draw();
  }

  flip(direction) {
    // On a lying picture, what the reader sees as left and right are its rows.
    const columns = (direction === "horizontal") === (this.turns % 2 === 0);
    if (columns) this.mirrored = !this.mirrored;
    else this.upended = !this.upended;
    this.draw();
  }

  // Rows may lie further apart than columns; null spacing is drawn square, and no length is shown then.
  get aspect() {
    const spacing = this.frame && this.frame.spacing_mm;
    return spacing ? spacing[0] / spacing[1] : 1;
  }

  fit() {
    this.fitted = true;
    this.pan = { x: 0, y: 0 };
    if (!this.frame) return;
    const upright = this.turns % 2 === 0;
    const wide = upright ? this.frame.columns : this.frame.rows * this.aspect;
    const high = upright ? this.frame.rows * this.aspect : this.frame.columns;
    this.zoom = Math.min(this.canvas.width / wide, this.canvas.height / high);
    this.draw();
    this.changed("view");
  }

  zoomTo(zoom, at = { x: this.canvas.width / 2, y: this.canvas.height / 2 }) {
    const next = Math.min(LARGEST_ZOOM, Math.max(SMALLEST_ZOOM, zoom));
    const factor = next / this.zoom;
    const fromCentre = { x: at.x - this.canvas.width / 2, y: at.y - this.canvas.height / 2 };
    this.pan = {
      x: fromCentre.x - (fromCentre.x - this.pan.x) * factor,
      y: fromCentre.y - (fromCentre.y - this.pan.y) * factor,
    };
    this.zoom = next;
    this.fitted = false;
    this.draw();
    this.changed("view");
  }

  move(x, y) {
    this.pan = { x: this.pan.x + x, y: this.pan.y + y };
    this.fitted = false;
    this.draw();
    this.changed("view");
  }

  overlay(heat) {
    this.heat = heat && { ...heat, picture: coloured(heat) };
    this.draw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const box = this.canvas.parentElement;
    const [wide, high] = [Math.round(box.clientWidth * ratio), Math.round(box.clientHeight * ratio)];
    if (!wide || !high || (wide === this.canvas.width && high === this.canvas.height)) return;
    this.canvas.width = wide;
    this.canvas.height = high;
    if (this.fitted) this.fit();
    else this.draw();
  }

  // Stored values to grey levels. Once a display frame at most, however fast the slider moves.
  paint() {
    if (!this.frame || this.painting) return;
    this.painting = requestAnimationFrame(() => {
      this.painting = 0;
      if (!this.frame) return;
      const { rows, columns, pixels, kind } = this.frame;
      this.picture.width = columns;
      this.picture.height = rows;
      const context = this.picture.getContext("2d");
      const image = context.createImageData(columns, rows);
      const out = new Uint32Array(image.data.buffer);
      if (kind === "rgb8") {
        const flip = this.inverted ? 0xffffff : 0;
        for (let i = 0, from = 0; i < out.length; i++, from += 3) {
          out[i] = (0xff000000 | (pixels[from + 2] << 16) | (pixels[from + 1] << 8) | pixels[from]) ^ flip;
        }
      } else {
        const packed = table(this.frame, this.setting, this.inverted);
        for (let i = 0; i < out.length; i++) out[i] = packed[pixels[i]];
      }
      context.putImageData(image, 0, 0);
      this.drawNow();
    });
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.drawNow();
    });
  }

  drawNow() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.frame) return;
    context.translate(this.canvas.width / 2 + this.pan.x, this.canvas.height / 2 + this.pan.y);
    context.scale(this.zoom, this.zoom);
    context.rotate((this.turns * Math.PI) / 2);
    context.scale(this.mirrored ? -1 : 1, (this.upended ? -1 : 1) * this.aspect);
    context.imageSmoothingQuality = "high";
    const { rows, columns } = this.frame;
    context.drawImage(this.picture, -columns / 2, -rows / 2);
    if (this.heat && this.opacity > 0) {
      context.globalAlpha = this.opacity;
      context.drawImage(this.heat.picture, -columns / 2, -rows / 2, columns, rows);
      context.globalAlpha = 1;
    }
  }

  listen() {
    const { canvas } = this;
    let held = null;
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      if (!this.frame) return;
      // OHIF's buttons: left the chosen tool, middle pan, right zoom.
      const tool = event.button === 1 ? "pan" : event.button === 2 ? "zoom" : event.shiftKey ? "pan" : this.tool;
      held = { tool, x: event.clientX, y: event.clientY };
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return;
      const ratio = window.devicePixelRatio || 1;
      const [x, y] = [(event.clientX - held.x) * ratio, (event.clientY - held.y) * ratio];
      held = { ...held, x: event.clientX, y: event.clientY };
      if (held.tool === "pan") this.move(x, y);
      else if (held.tool === "zoom") this.zoomTo(this.zoom * Math.exp(-y / 200));
      else this.dragWindow(x, y);
    });
    const release = () => (held = null);
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("dblclick", () => this.fit());
  }

  dragWindow(x, y) {
    if (this.frame.kind === "rgb8" || this.setting.entries) return; // neither has a centre and a width
    const step = (this.frame.maximum - this.frame.minimum || 1) / 1024;
    this.apply({
      ...this.setting,
      centre: this.setting.centre + y * step,
      width: Math.max(this.frame.slope, this.setting.width + x * step),
    });
    this.changed("window");
  }
}

export function colourBar() {
  const places = PLASMA.map((colour, index) => `${colour} ${100 * (FAINTEST_SHOWN + ((1 - FAINTEST_SHOWN) * index) / (PLASMA.length - 1))}%`);
  return `linear-gradient(to right, transparent ${100 * FAINTEST_SHOWN}%, ${places.join(", ")})`;
}

// One opacity for all that is shown: how much a region speaks for the finding is told by its colour alone.
function coloured({ rows, columns, values, scale }) {
  const picture = document.createElement("canvas");
  picture.width = columns;
  picture.height = rows;
  const context = picture.getContext("2d");
  const image = context.createImageData(columns, rows);
  const palette = ramp(256);
  for (let i = 0; i < values.length; i++) {
    const share = Math.min(1, values[i] / scale);
    if (share < FAINTEST_SHOWN) continue;
    const [red, green, blue] = palette[Math.round(((share - FAINTEST_SHOWN) / (1 - FAINTEST_SHOWN)) * 255)];
    image.data.set([red, green, blue, 255], i * 4);
  }
  context.putImageData(image, 0, 0);
  return picture;
}

function ramp(count) {
  const stops = PLASMA.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  return Array.from({ length: count }, (_, index) => {
    const place = (index / (count - 1)) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(place));
    return stops[low].map((value, channel) => value + (stops[low + 1][channel] - value) * (place - low));
  });
}
