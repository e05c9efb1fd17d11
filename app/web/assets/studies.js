// The list of earlier studies, and the series of the one that is open.

import { h, icon, personName, plural } from "./elements.js";

export class Studies {
  constructor({ open, openSeries }) {
    this.actions = { open, openSeries };
    this.all = [];
    this.search = h("input", {
      type: "search",
      placeholder: "Name, number, description",
      "aria-label": "Search the studies",
      oninput: () => this.draw(),
    });
    this.list = h("div", { class: "study-list", role: "group", "aria-label": "Studies", onkeydown: (event) => this.walk(event) });
    this.count = h("span", { class: "quiet" });
    this.element = h(
      "section",
      { class: "studies", "aria-label": "Studies" },
      h("header", {}, h("h2", {}, "Studies"), this.count),
      h("label", { class: "search" }, icon("search"), this.search),
      this.list,
    );
  }

  show(studies) {
    this.all = studies;
    this.draw();
  }

  say(text) {
    this.list.replaceChildren(h("p", { class: "empty" }, text));
  }

  select(study, seriesIndex) {
    this.study = study;
    this.seriesIndex = seriesIndex;
    this.draw();
  }

  draw() {
    const wanted = this.search.value.trim().toLowerCase();
    const found = this.all.filter((study) =>
      [personName(study.patient_name), study.patient_id, study.description, study.accession_number, study.study_date]
        .filter(Boolean)
        .some((text) => text.toLowerCase().includes(wanted)),
    );
    this.count.textContent = wanted ? `${found.length} of ${this.all.length}` : String(this.all.length || "");
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    this.list.replaceChildren(
      ...(found.length
        ? found.map((study) => this.row(study))
        : [h("p", { class: "empty" }, this.all.length ? "No study matches." : "No studies yet. Drop images here to begin.")]),
    );
    if (focused) this.list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  row(study) {
    const uid = study.study_instance_uid;
    const open = this.study?.study_instance_uid === uid;
    const facts = [study.study_date, study.modalities.join(", "), plural(study.images, "image")].filter(Boolean).join(" · ");
    const button = h(
      "button",
      { type: "button", class: "study", "data-key": uid, "aria-current": open ? "true" : null, onclick: () => this.actions.open(uid) },
      h("span", { class: "name" }, personName(study.patient_name)),
      h("span", { class: study.state === "positive" ? "mark finding" : "mark" }, MARKS[study.state]),
      h("span", { class: "quiet" }, [study.patient_id, study.description].filter(Boolean).join(" · ") || "No description"),
      h("span", { class: "quiet" }, facts),
      study.road && h("span", { class: "quiet" }, ROADS[study.road]),
      study.hindrance && h("span", { class: "quiet why" }, study.hindrance),
    );
    if (!open || this.study.series.length < 2) return h("div", { class: "study-row" }, button);
    const series = this.study.series.map((one, index) =>
      h(
        "button",
        {
          type: "button",
          class: "series",
          "data-key": one.series_instance_uid,
          "aria-current": index === this.seriesIndex ? "true" : null,
          onclick: () => this.actions.openSeries(index),
        },
        h("span", {}, [one.modality, one.description ?? (one.number !== null && `series ${one.number}`)].filter(Boolean).join(" · ") || "Series"),
        h("span", { class: "quiet" }, String(one.images.length)),
      ),
    );
    return h("div", { class: "study-row" }, button, h("div", { class: "series-list" }, series));
  }

  walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...this.list.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) next.focus();
    event.preventDefault();
    event.stopPropagation();
  }
}

// How far a study that came over the network has come.
const ROADS = {
  arriving: "Arriving",
  queued: "Queued",
  "in-progress": "Being diagnosed",
  "given-up": "Diagnosis given up",
  "results-waiting": "Results wait",
  "results-refused": "Results refused",
  "results-sent": "Results sent",
};

const MARKS = {
  positive: "Finding",
  negative: "Below threshold",
  withheld: "No answer",
  unread: "Not diagnosed",
};
