// The viewport with everything around it: tools, corner texts, image slider, window and heat map controls.

import { h, icon, number, personName } from "./elements.js";
import { colourBar, FAINTEST_SHOWN, Viewport } from "./viewport.js";
import { presets } from "./window.js";

const CINE_MS = 100;

export class Controls {
  constructor({ goTo, showHeat }) {
    this.goTo = goTo;
    this.showHeat = showHeat;
    this.index = 0;
    this.count = 0;
    this.choices = [];
    this.opacities = new Map(); // each finding keeps its own
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": "Image viewport" });
    this.viewport = new Viewport(this.canvas, { changed: (what) => this.changed(what) });
    this.element = this.build();
    this.viewport.watch();
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.keys = {
      z: () => this.choose("zoom"),
      w: () => this.choose("window"),
      p: () => this.choose("pan"),
      "+": () => this.viewport.zoomTo(this.viewport.zoom * 1.25),
      "-": () => this.viewport.zoomTo(this.viewport.zoom / 1.25),
      "=": () => this.viewport.fit(),
      r: () => this.viewport.turn(1),
      l: () => this.viewport.turn(-1),
      h: () => this.viewport.flip("horizontal"),
      v: () => this.viewport.flip("vertical"),
      i: () => this.invert(),
      c: () => this.cine(),
      o: () => this.showHeat(this.shown ? null : this.lastShown ?? this.findings?.find((one) => !one.normal) ?? null),
      " ": () => this.resetView(),
      ...Object.fromEntries([1, 2, 3, 4, 5].map((digit) => [String(digit), () => this.usePreset(`ct-${digit}`)])),
    };
  }

  build() {
    const button = (label, title, act, extra = {}) =>
      h("button", { type: "button", title, ...extra, onclick: act }, label);
    const drawn = (name, title, act) => button(icon(name), title, act, { class: "square", "aria-label": title.replace(/ \(.*/, "") });
    this.tools = ["window", "pan", "zoom"].map((tool) =>
      button(tool[0].toUpperCase() + tool.slice(1), `Drag to ${{ window: "change the window (w)", pan: "pan (p)", zoom: "zoom (z)" }[tool]}`, () => this.choose(tool), {
        "aria-pressed": tool === "window" ? "true" : "false",
        "data-tool": tool,
      }),
    );
    this.inverting = button("Invert", "Invert (i)", () => this.invert(), { "aria-pressed": "false" });
    this.playing = button(icon("play"), "Play the series (c)", () => this.cine(), { class: "square", "aria-label": "Play the series", "aria-pressed": "false" });
    this.corners = Object.fromEntries(
      ["top-left", "top-right", "bottom-left", "bottom-right"].map((corner) => [corner, h("div", { class: `corner ${corner}` })]),
    );
    this.message = h("div", { class: "viewport-message", role: "status" }, "Drop images anywhere on this page, or open an earlier study.");
    this.slider = this.range("Image in the series", { min: 1, max: 1, step: 1, value: 1 }, (value) => this.goTo(value - 1));
    this.counter = h("output", { class: "counter" }, "Image 0 of 0");
    this.preset = h("select", { id: "preset", onchange: () => this.usePreset(this.preset.value) });
    this.centre = this.pair("centre", "Centre");
    this.width = this.pair("width", "Width");
    this.heatChoice = h("select", {
      id: "heat",
      onchange: () => this.showHeat(this.findings[Number(this.heatChoice.value)] ?? null),
    });
    this.opacity = this.range("Opacity of the heat map", { id: "opacity", min: 0, max: 100, step: 1, value: 40 }, (value) => this.setOpacity(value));
    this.opacityWords = h("output", { for: "opacity" }, "40 %");
    this.barHigh = h("span", {}, "");
    const element = h(
      "section",
      { class: "viewer", "aria-label": "Viewer" },
      h(
        "div",
        { class: "toolbar", role: "toolbar", "aria-label": "Viewer tools" },
        h("div", { class: "group" }, this.tools),
        h(
          "div",
          { class: "group" },
          this.inverting,
          button("Fit", "Fit to the window (=)", () => this.viewport.fit()),
          button("1:1", "One image pixel on one screen pixel", () => this.viewport.zoomTo(1)),
        ),
        h(
          "div",
          { class: "group" },
          drawn("left", "Turn left (l)", () => this.viewport.turn(-1)),
          drawn("right", "Turn right (r)", () => this.viewport.turn(1)),
          drawn("horizontal", "Flip left and right (h)", () => this.viewport.flip("horizontal")),
          drawn("vertical", "Flip top and bottom (v)", () => this.viewport.flip("vertical")),
        ),
        h("div", { class: "group" }, this.playing),
        h("div", { class: "group" }, button("Reset", "Reset the view (space)", () => this.resetView())),
      ),
      h("div", { class: "viewport" }, this.canvas, ...Object.values(this.corners), this.message),
      h("div", { class: "strip" }, this.slider, this.counter),
      h(
        "div",
        { class: "panel-row" },
        h(
          "fieldset",
          {},
          h("legend", { class: "hidden" }, "Window"),
          h("label", { for: "preset" }, "Window"),
          this.preset,
          ...this.centre.elements,
          ...this.width.elements,
        ),
        h(
          "fieldset",
          {},
          h("legend", { class: "hidden" }, "Heat map"),
          h("label", { for: "heat" }, "Heat map"),
          this.heatChoice,
          h("label", { for: "opacity" }, "Opacity"),
          this.opacity,
          this.opacityWords,
          h("span", { class: "bar-label" }, "Evidence"),
          h("span", { class: "bar", role: "img", "aria-label": "Colours from no evidence to the strongest evidence for the finding", style: `background:${colourBar()}` }),
          this.barHigh,
        ),
      ),
    );
    return element;
  }

  range(label, attributes, changed) {
    const input = h("input", { type: "range", "aria-label": label, ...attributes });
    input.addEventListener("input", () => changed(Number(input.value)));
    return input;
  }

  // A slider and a number that say the same.
  pair(part, label) {
    const set = (value) => {
      if (!Number.isFinite(value)) return;
      this.viewport.apply({ ...this.viewport.setting, [part]: part === "width" ? Math.max(this.frame.slope, value) : value });
      this.changed("window");
    };
    const slider = this.range(`Window ${part}`, { id: `window-${part}`, min: 0, max: 1, step: "any", value: 0, disabled: true }, set);
    const field = h("input", { type: "number", step: "any", disabled: true, "aria-label": `Window ${part} as a number` });
    field.addEventListener("change", () => set(field.valueAsNumber));
    return { slider, field, elements: [h("label", { for: `window-${part}` }, label), slider, field] };
  }

  begin(study, series) {
    this.stopCine();
    this.series = series;
    this.study = study;
    this.chosen = null;
    this.frame = null;
    this.viewport.reset();
    this.viewport.clear();
    this.inverting.setAttribute("aria-pressed", "false");
    this.say("Loading");
    const facts = [study.patient_sex, study.patient_birth_date && `born ${study.patient_birth_date}`].filter(Boolean).join(", ");
    lines(this.corners["top-left"], [personName(study.patient_name), study.patient_id, facts]);
    lines(this.corners["top-right"], [study.study_date, study.description, [series?.modality, series?.body_part].filter(Boolean).join(" "), series?.description]);
  }

  place(index, images) {
    this.index = index;
    this.count = images.length;
    this.slider.max = Math.max(1, images.length);
    this.slider.value = index + 1;
    this.slider.disabled = images.length < 2;
    this.playing.disabled = images.length < 2;
    this.counter.textContent = `Image ${images.length ? index + 1 : 0} of ${images.length}`;
    this.canvas.setAttribute("aria-label", `Image viewport, image ${images.length ? index + 1 : 0} of ${images.length}`);
  }

  show(frame) {
    this.frame = frame;
    this.message.hidden = true;
    this.choices = presets(frame, this.series?.modality);
    const colour = frame.kind === "rgb8";
    // The window that the reader chose stays while scrolling; one that came from the file is each image's own.
    const kept = this.chosen === "own" && this.viewport.setting ? null : this.choices.find((choice) => choice.key === this.chosen) ?? this.choices[0];
    this.viewport.show(frame, kept ? kept.setting : this.viewport.setting);
    this.preset.replaceChildren(
      ...this.choices.map((choice) => h("option", { value: choice.key }, choice.name)),
      h("option", { value: "own", hidden: kept !== null }, "As set"),
    );
    this.preset.value = kept ? kept.key : "own";
    this.preset.disabled = colour;
    const span = frame.maximum - frame.minimum || 1;
    this.bounds(this.centre, frame.minimum - span / 2, frame.maximum + span / 2, colour);
    this.bounds(this.width, frame.slope, span * 2, colour);
    this.words();
  }

  bounds({ slider, field }, low, high, colour) {
    slider.min = low;
    slider.max = high;
    slider.disabled = field.disabled = colour;
  }

  say(text) {
    this.message.textContent = text;
    this.message.hidden = false;
    if (text !== "Loading") this.viewport.clear();
  }

  tell(text) {
    lines(this.corners["bottom-right"], [text]);
  }

  changed(what) {
    if (!this.frame) return;
    if (what === "window") {
      this.chosen = "own";
      this.preset.querySelector("[value=own]").hidden = false;
      this.preset.value = "own";
    }
    this.words();
  }

  words() {
    const { setting, zoom } = this.viewport;
    const lookup = Boolean(setting?.entries);
    const colour = this.frame.kind === "rgb8";
    for (const [part, { slider, field }] of [["centre", this.centre], ["width", this.width]]) {
      const off = lookup || colour;
      slider.disabled = field.disabled = off;
      slider.value = off ? slider.min : setting[part];
      field.value = off ? "" : number(setting[part]);
    }
    const level = colour ? "Colour" : lookup ? "Lookup table" : `C ${number(setting.centre)}  W ${number(setting.width)}`;
    lines(this.corners["bottom-left"], [level, `Zoom ${Math.round(zoom * 100)} %`]);
    const { rows, columns, spacing_mm: spacing } = this.frame;
    lines(this.corners["bottom-right"], [
      `${columns} × ${rows}`,
      spacing ? `${number(spacing[1])} × ${number(spacing[0])} mm a pixel` : "Pixel size not given",
    ]);
  }

  usePreset(key) {
    const choice = this.choices.find((one) => one.key === key);
    if (!choice || this.frame.kind === "rgb8") return;
    this.chosen = key;
    this.preset.value = key;
    this.preset.querySelector("[value=own]").hidden = true;
    this.viewport.apply(choice.setting);
    this.words();
  }

  choose(tool) {
    this.viewport.tool = tool;
    this.canvas.dataset.tool = tool;
    for (const button of this.tools) button.setAttribute("aria-pressed", button.dataset.tool === tool ? "true" : "false");
  }

  invert() {
    this.viewport.invert();
    this.inverting.setAttribute("aria-pressed", String(this.viewport.inverted));
  }


  resetView() {
    if (!this.frame) return;
    this.viewport.reset();
    this.viewport.fit();
    this.inverting.setAttribute("aria-pressed", "false");
    this.usePreset(this.choices[0].key);
    this.viewport.paint();
  }

  wheel(event) {
    event.preventDefault();
    if (!this.frame) return;
    if (this.count > 1 && !event.ctrlKey) {
      // A touch pad sends many small steps; one image for each notch of a wheel.
      this.rolled = (this.rolled ?? 0) + event.deltaY;
      const notch = event.deltaMode === 0 ? 50 : 1;
      const steps = Math.trunc(this.rolled / notch);
      if (steps) {
        this.rolled = 0;
        this.goTo(this.index + Math.sign(steps));
      }
      return;
    }
    const ratio = window.devicePixelRatio || 1;
    const at = { x: event.offsetX * ratio, y: event.offsetY * ratio };
    this.viewport.zoomTo(this.viewport.zoom * Math.exp(-event.deltaY / 500), at);
  }

  cine() {
    if (this.playback) {
      this.stopCine();
      return;
    }
    if (this.count < 2) return;
    this.playing.setAttribute("aria-pressed", "true");
    const step = async () => {
      await this.goTo((this.index + 1) % this.count);
      if (this.playback) this.playback = setTimeout(step, CINE_MS);
    };
    this.playback = setTimeout(step, CINE_MS);
  }

  stopCine() {
    clearTimeout(this.playback);
    this.playback = null;
    this.playing.setAttribute("aria-pressed", "false");
  }

  heatChoices(findings, shown) {
    this.findings = findings;
    this.heatChoice.replaceChildren(
      h("option", { value: "" }, findings.length ? "Off" : "No findings"),
      ...findings.map((one, index) => h("option", { value: index }, one.display)),
    );
    const at = shown ? findings.findIndex((one) => one.task === shown.task && one.label === shown.label) : -1;
    this.heatChoice.value = at < 0 ? "" : String(at);
    this.heatChoice.disabled = !findings.length;
  }

  overlay(map, finding) {
    this.shown = map ? finding : null;
    if (finding) this.lastShown = finding;
    const opacity = this.opacities.get(finding?.label) ?? 40;
    this.opacity.value = opacity;
    this.setOpacity(opacity);
    this.opacity.disabled = !map;
    this.element.classList.toggle("with-heat", Boolean(map));
    const shows = map && map.values.some((value) => value >= FAINTEST_SHOWN * map.scale);
    this.barHigh.textContent = !map ? "" : shows ? `+${number(map.scale)} logit` : "none here";
    this.viewport.overlay(map);
  }

  setOpacity(value) {
    if (this.shown) this.opacities.set(this.shown.label, value);
    this.opacityWords.textContent = `${value} %`;
    this.viewport.opacity = value / 100;
    this.viewport.draw();
  }
}

function lines(element, texts) {
  element.replaceChildren(...texts.filter(Boolean).map((text) => h("div", {}, text)));
}
