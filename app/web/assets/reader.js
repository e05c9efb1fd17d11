// The reading page: put its parts together, keep the address, and hear the keyboard.

import { h } from "./elements.js";
import { Controls } from "./controls.js";
import { Findings } from "./findings.js";
import { check, heatMap, image, read } from "./service.js";
import { Studies } from "./studies.js";
import { Intake } from "./upload.js";

class Reader {
  constructor(place) {
    this.study = null;
    this.wanted = null; // the study asked for last, which may still be on its way
    this.images = [];
    this.seriesIndex = 0;
    this.index = 0;
    this.heat = null;
    this.checks = {}; // what covering the image said, by prediction, task and label
    this.intake = new Intake({
      arrived: (uid) => this.refresh().then(() => this.open(uid)),
      answered: (uid, event) => this.take(uid, event),
      finished: (uid) => this.refresh().then(() => this.wanted?.uid === uid && this.open(uid, { keep: true })),
      settled: () => this.drawFindings(),
    });
    this.studies = new Studies({ open: (uid) => this.open(uid, { remember: true }), openSeries: (index) => this.openSeries(index) });
    this.findings = new Findings({
      showHeat: (finding) => this.showHeat(finding),
      check: (prediction, finding) => this.check(prediction, finding),
      diagnose: (age) => this.diagnose(age),
      goTo: (index) => this.goTo(index),
    });
    this.controls = new Controls({ goTo: (index) => this.goTo(index), showHeat: (finding) => this.showHeat(finding) });
    place.replaceChildren(
      h("div", { class: "side" }, this.intake.element, this.studies.element),
      this.controls.element,
      this.findings.element,
    );
    window.addEventListener("popstate", () => this.followAddress());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  async start() {
    this.drawFindings();
    try {
      this.findings.know(await read("api/model"));
      this.intake.offer(await read("api/samples"));
    } catch (problem) {
      this.controls.say(problem.message);
      return;
    }
    await this.refresh();
    await this.followAddress();
  }

  async refresh() {
    try {
      this.studies.show(await read("api/studies"));
    } catch (problem) {
      this.studies.say(problem.message);
    }
  }

  async followAddress() {
    const uid = new URLSearchParams(location.search).get("study");
    if (uid) await this.open(uid);
  }

  // `keep` stays at the image in sight, for a study that is only read anew.
  async open(uid, { remember = false, keep = false } = {}) {
    const wanted = (this.wanted = { uid });
    let study;
    try {
      study = await read(`api/studies/${encodeURIComponent(uid)}`);
    } catch (problem) {
      if (wanted === this.wanted) this.controls.say(problem.message);
      return;
    }
    if (wanted !== this.wanted) return; // asked for again, or for another, in the meantime
    const address = new URL(location.href);
    const known = address.searchParams.get("study") === uid;
    address.searchParams.set("study", uid);
    if (!known) history[remember ? "pushState" : "replaceState"](null, "", address);
    const same = keep && this.study?.study_instance_uid === uid;
    this.study = study;
    await this.openSeries(same ? this.seriesIndex : 0, { at: same ? this.index : undefined, keep: same });
  }

  async openSeries(seriesIndex, { at, keep = false } = {}) {
    const series = this.study.series[seriesIndex];
    this.seriesIndex = series ? seriesIndex : 0;
    this.images = series ? series.images : [];
    if (!keep) {
      this.heat = null;
      this.controls.begin(this.study, series);
    }
    this.studies.select(this.study, this.seriesIndex);
    await this.goTo(at ?? 0);
  }

  async goTo(index) {
    this.index = Math.max(0, Math.min(this.images.length - 1, index));
    const wanted = this.images[this.index];
    this.controls.place(this.index, this.images);
    this.drawFindings();
    if (!wanted) {
      this.controls.say("This study holds no images that can be shown.");
      return;
    }
    try {
      const frame = await image(wanted.sop_instance_uid, wanted.frame);
      if (wanted !== this.images[this.index]) return; // scrolled on in the meantime
      this.controls.show(frame);
      await this.drawHeat();
    } catch (problem) {
      if (wanted === this.images[this.index]) this.controls.say(problem.message);
      return;
    }
    for (const near of [this.index + 1, this.index - 1, this.index + 2]) {
      const next = this.images[near];
      if (next) image(next.sop_instance_uid, next.frame).catch(() => {}); // told when it is looked at
    }
  }

  take(uid, event) {
    if (this.study?.study_instance_uid !== uid) return;
    for (const series of this.study.series) {
      for (const one of series.images) {
        if (one.sop_instance_uid === event.sop_instance_uid && one.frame === event.frame) one.prediction = event.prediction;
      }
    }
    this.drawFindings();
    this.controls.place(this.index, this.images);
  }

  diagnose(age) {
    if (!this.study) return;
    this.intake.diagnose(this.study.study_instance_uid, age);
    this.drawFindings();
  }

  drawFindings() {
    this.findings.show({ study: this.study, images: this.images, index: this.index, heat: this.heat, checks: this.checks, busy: this.intake.busy });
  }

  showHeat(finding) {
    this.heat = finding && { task: finding.task, label: finding.label, display: finding.display };
    this.drawFindings();
    return this.drawHeat();
  }

  async check(prediction, finding) {
    const key = `${prediction.prediction_id} ${finding.task} ${finding.label}`;
    const tell = (said) => {
      this.checks = { ...this.checks, [key]: said };
      this.drawFindings();
    };
    tell({ done: 0 });
    try {
      await check(prediction.prediction_id, finding, tell);
    } catch (problem) {
      tell({ problem: problem.message });
    }
  }

  async drawHeat() {
    const wanted = this.images[this.index];
    const prediction = wanted?.prediction;
    const asked = this.heat;
    this.controls.heatChoices(prediction?.findings ?? [], asked);
    const answered = asked && prediction?.findings.some((one) => one.task === asked.task && one.label === asked.label);
    if (!answered) {
      this.controls.overlay(null);
      return;
    }
    try {
      const map = await heatMap(prediction.prediction_id, asked.task, asked.label);
      if (wanted === this.images[this.index] && asked === this.heat) this.controls.overlay(map, asked);
    } catch (problem) {
      this.controls.overlay(null);
      this.controls.tell(problem.message);
    }
  }

  // OHIF's default keys (platform/core/src/defaults/hotkeyBindings.js). What a focused control needs, it keeps.
  key(event) {
    const target = event.target;
    if (event.altKey || event.metaKey || event.ctrlKey || !this.controls.element.offsetParent) return;
    if (target.closest("input:not([type=range]), select, textarea, [role=tab], [role=listbox]")) return;
    if (target.matches("input[type=range]") && /^(Arrow|Page|Home|End)/.test(event.key)) return;
    if (target.closest("button, summary, a") && (event.key === " " || event.key === "Enter")) return;
    if (target.closest(".findings, .activity-list") && /^(Arrow|Page|Home|End)/.test(event.key)) return;
    const page = (step) => this.study && this.study.series[this.seriesIndex + step] && this.openSeries(this.seriesIndex + step);
    const actions = {
      ArrowDown: () => this.goTo(this.index + 1),
      ArrowUp: () => this.goTo(this.index - 1),
      ArrowRight: () => this.goTo(this.index + 1),
      ArrowLeft: () => this.goTo(this.index - 1),
      Home: () => this.goTo(0),
      End: () => this.goTo(this.images.length - 1),
      PageDown: () => page(1),
      PageUp: () => page(-1),
    };
    const act = actions[event.key] ?? this.controls.keys[event.key];
    if (!act || (!this.study && !actions[event.key])) return;
    event.preventDefault();
    act();
  }
}

// Gradio draws the page after this script has run; its empty column is where the reader belongs.
function begin() {
  const place = document.getElementById("reader");
  if (!place || place.childElementCount) return false;
  new Reader(place).start();
  return true;
}

if (!begin()) {
  const watch = new MutationObserver(() => begin() && watch.disconnect());
  watch.observe(document.documentElement, { childList: true, subtree: true });
}
