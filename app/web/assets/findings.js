// Show what the model answered for one image, or why it did not, and how sure it is.

import { h, number, percent, plural } from "./elements.js";

export class Findings {
  constructor({ showHeat, check, diagnose, goTo }) {
    this.actions = { showHeat, check, diagnose, goTo };
    this.tasks = {};
    this.element = h("section", { class: "findings", "aria-label": "Findings", tabindex: "0" });
  }

  know(model) {
    this.tasks = Object.fromEntries(model.tasks.map((task) => [task.name, task]));
  }

  // `images` is the whole series, `index` the image in sight, `heat` the finding whose map is shown, `checks` what became
  // of checking the maps.
  show({ study, images, index, heat, checks, busy }) {
    // Nothing is redrawn that stays the same, so that no button is replaced between pressing and releasing it.
    const state = JSON.stringify([study?.study_instance_uid, images.map((image) => image.prediction), index, heat, checks, busy]);
    if (state === this.state) return;
    this.state = state;
    this.checks = checks;
    if (!study) {
      this.element.replaceChildren(h("p", { class: "empty" }, "Add images or open an earlier study."));
      return;
    }
    const prediction = images[index]?.prediction;
    const read = images.filter((image) => image.prediction);
    const again = h(
      "button",
      { type: "button", class: "small", disabled: busy, "data-key": "diagnose", onclick: () => this.actions.diagnose() },
      read.length ? "Diagnose again" : "Diagnose",
    );
    const head = h("header", {}, h("h2", {}, "Findings"), again);
    const parts = [head];
    if (images.length > 1 && read.length) parts.push(this.overview(images, index));
    if (prediction) parts.push(...this.answer(prediction, heat, busy));
    else parts.push(this.absent(images, index, read, busy));
    this.replace(parts);
  }

  // A redraw keeps what the reader was doing: the scroll position, the focus, the record being open, a half typed age.
  replace(parts) {
    const scrolled = this.element.scrollTop;
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    const open = this.element.querySelector("details")?.open ?? false;
    const typed = this.element.querySelector("#stated-age")?.value;
    this.element.replaceChildren(...parts);
    const details = this.element.querySelector("details");
    if (details) details.open = open;
    const field = this.element.querySelector("#stated-age");
    if (field && typed) field.value = typed;
    this.element.scrollTop = scrolled;
    if (focused) this.element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  absent(images, index, read, busy) {
    if (busy) return h("p", { class: "empty" }, "Diagnosing. The answer appears here.");
    if (!images.length) return h("p", { class: "empty" }, "This study holds no images that can be shown.");
    if (!read.length) return h("p", { class: "empty" }, "These images have not been diagnosed.");
    const nearest = images
      .map((image, place) => ({ image, place }))
      .filter(({ image }) => image.prediction)
      .reduce((best, one) => (Math.abs(one.place - index) < Math.abs(best.place - index) ? one : best));
    return h(
      "div",
      { class: "card" },
      h("p", {}, `This image was not diagnosed: ${read.length} of the ${images.length} images of the series were, evenly spread.`),
      this.jump(nearest.place, `Go to image ${nearest.place + 1}`),
    );
  }

  jump(place, text) {
    return h("button", { type: "button", class: "small", "data-key": `go ${place}`, onclick: () => this.actions.goTo(place) }, text);
  }

  answer(prediction, heat, busy) {
    const parts = [];
    const byTask = new Map();
    for (const finding of prediction.findings) byTask.set(finding.task, [...(byTask.get(finding.task) ?? []), finding]);
    for (const [task, findings] of byTask) parts.push(this.task(task, findings, prediction, heat));
    // Where nothing is answered, the reason that came nearest to an answer stands first.
    const told = prediction.abstained?.reason;
    const reasons = [...new Set([told, ...prediction.withheld.map((one) => one.reason)].filter(Boolean))];
    if (reasons.length) {
      parts.push(
        h(
          "div",
          { class: "card withheld" },
          h("h3", {}, byTask.size ? "Not answered" : "No answer"),
          h("ul", {}, reasons.map((one) => h("li", {}, one))),
        ),
      );
    }
    if (prediction.asks_age) parts.push(this.age(busy));
    if (prediction.warnings.length) {
      parts.push(
        h("div", { class: "card notes" }, h("h3", {}, "Please note"), h("ul", {}, prediction.warnings.map((one) => h("li", {}, one)))),
      );
    }
    parts.push(this.record(prediction));
    return parts;
  }

  task(name, findings, prediction, heat) {
    const about = this.tasks[name];
    const ordered = [...findings].sort((a, b) => a.normal - b.normal || b.probability - a.probability);
    return h(
      "article",
      { class: "card task" },
      h("h3", {}, about?.display ?? name),
      about && h("p", { class: "quiet" }, `Trained on ${about.population}`),
      h("div", { class: "labels" }, ordered.map((finding) => this.label(finding, heat, prediction))),
      this.set(prediction.prediction_sets[name] ?? [], findings, about),
    );
  }

  label(finding, heat, prediction) {
    const shown = heat && heat.task === finding.task && heat.label === finding.label;
    const state = finding.normal ? "" : finding.positive ? "above" : "below";
    const verdict = finding.normal
      ? "not a finding"
      : `${state} the threshold of ${percent(finding.threshold)}`;
    return h(
      "div",
      { class: `label ${state}` },
      h("span", { class: "label-name" }, finding.display),
      h("span", { class: "label-number" }, percent(finding.probability)),
      h(
        "span",
        { class: "scale", role: "img", "aria-label": `${finding.display}: ${percent(finding.probability)}, ${verdict}` },
        h("span", { class: "fill", style: `width:${finding.probability * 100}%` }),
        !finding.normal && h("span", { class: "threshold", style: `left:${finding.threshold * 100}%` }),
      ),
      h("span", { class: "label-verdict" }, finding.normal ? "Normal label, for comparison" : capital(verdict)),
      h(
        "button",
        {
          type: "button",
          class: "small",
          "data-key": `heat ${finding.task} ${finding.label}`,
          "aria-pressed": shown ? "true" : "false",
          "aria-label": `Heat map for ${finding.display}`,
          onclick: () => this.actions.showHeat(shown ? null : finding),
        },
        "Heat map",
      ),
      shown && this.check(finding, prediction),
    );
  }

  check(finding, prediction) {
    const said = this.checks[`${prediction.prediction_id} ${finding.task} ${finding.label}`];
    return h(
      "div",
      { class: "check" },
      h(
        "button",
        {
          type: "button",
          class: "small",
          "data-key": `check ${finding.task} ${finding.label}`,
          disabled: Boolean(said && "done" in said),
          title: "Cover the image place by place, and see whether the model misses what the map marks",
          onclick: () => this.actions.check(prediction, finding),
        },
        "Check by occlusion",
      ),
      h("p", { class: "quiet", role: "status" }, checkWords(said)),
    );
  }

  set(labels, findings, about) {
    const names = labels.map((label) => findings.find((finding) => finding.label === label)?.display ?? label);
    const cover = about ? `${Math.round((1 - about.conformal_alpha) * 100)} % prediction set` : "Prediction set";
    const words =
      names.length === 0
        ? "empty: no label is likely enough"
        : names.length === 1
          ? names[0]
          : `${names.join(" or ")} (cannot be told apart at this level)`;
    return h("p", { class: "set" }, h("span", { class: "quiet" }, `${cover}: `), words);
  }

  age(busy) {
    const field = h("input", { type: "number", id: "stated-age", "data-key": "age", min: "0", max: "129", step: "1", required: true, inputmode: "numeric" });
    return h(
      "form",
      {
        class: "card age",
        onsubmit: (event) => {
          event.preventDefault();
          if (field.value !== "") this.actions.diagnose(Number(field.value));
        },
      },
      h("label", { for: "stated-age" }, "Patient's age at the time of the study, in completed years"),
      h("div", { class: "buttons" }, field, h("button", { type: "submit", class: "primary", disabled: busy }, "Diagnose with this age")),
      h("p", { class: "quiet" }, "It is recorded as stated by you. An age in the file wins over it."),
    );
  }

  // Where in the series each label is likeliest.
  overview(images, index) {
    const best = new Map();
    images.forEach((image, place) => {
      for (const finding of image.prediction?.findings ?? []) {
        if (finding.normal) continue;
        const key = `${finding.task} ${finding.label}`;
        const one = best.get(key) ?? { finding, place, positives: 0 };
        if (finding.probability > one.finding.probability) Object.assign(one, { finding, place });
        one.positives += finding.positive;
        best.set(key, one);
      }
    });
    const read = images.filter((image) => image.prediction);
    const silent = read.filter((image) => !image.prediction.findings.length).length;
    const rows = [...best.values()]
      .sort((a, b) => b.finding.probability - a.finding.probability)
      .slice(0, 6)
      .map(({ finding, place, positives }) =>
        h(
          "li",
          { class: positives ? "above" : "" },
          h("span", {}, `${finding.display}: highest ${percent(finding.probability)}, ${plural(positives, "image")} above threshold`),
          this.jump(place, place === index ? `Image ${place + 1}, in sight` : `Go to image ${place + 1}`),
        ),
      );
    const words = [`${read.length} of ${images.length} images diagnosed, each by itself.`];
    if (silent) words.push(silent === read.length ? "None was answered." : `${plural(silent, "image")} got no answer.`);
    return h("div", { class: "card overview" }, h("h3", {}, "Series"), h("p", { class: "quiet" }, words.join(" ")), rows.length > 0 && h("ul", {}, rows));
  }

  record(prediction) {
    const rows = [
      ["Prediction", prediction.prediction_id],
      ["Made", when(prediction.created_at)],
      ["Model", `${prediction.model.name} ${prediction.model.version}`],
      ["Model digest", prediction.model.sha256],
      ["Input digest", prediction.input_sha256],
      ["Recognised as", prediction.route ? `${prediction.route} (${percent(prediction.route_probability)})` : "unsure"],
      ["Computed on", `${prediction.provider}, ${prediction.precision}`],
      ["Time", Object.entries(prediction.latency_ms).map(([stage, ms]) => `${stage} ${number(ms)} ms`).join(", ")],
      prediction.stated_age_years !== null && ["Stated age", `${prediction.stated_age_years} years`],
      prediction.abstained && ["Reason code", prediction.abstained.code],
      prediction.ood && ["Distance from training", `${number(prediction.ood.score)} (up to ${number(prediction.ood.threshold)} is answered)`],
      prediction.audit && ["Audit event", `${prediction.audit.sequence} · ${prediction.audit.hash}`],
    ].filter(Boolean);
    return h(
      "details",
      { class: "card record" },
      h("summary", { "data-key": "record" }, `Record of this prediction${prediction.audit ? ` · audit event ${prediction.audit.sequence}` : ""}`),
      h("dl", {}, rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    );
  }
}

// What covering the image place by place says of the map, in a sentence.
export function checkWords(said) {
  if (!said) return "";
  if (said.problem) return said.problem;
  if ("done" in said) return said.runs ? `Covering the image: ${said.done} of ${said.runs}` : "Covering the image";
  const { rank_correlation: agreement, weaker_elsewhere: weaker } = said;
  const verdict = agreement >= 0.5 ? "Covering the image agrees with this map" : agreement >= 0.2 ? "Covering the image agrees with this map in part" : "Covering the image does not bear this map out: do not rely on where it is bright";
  const fall = said.drop_at_strongest > 0 ? `covering the place marked strongest weakens the answer more than ${percent(weaker)} of the other places do` : "covering the place marked strongest does not weaken the answer";
  return `${verdict} (rank correlation ${agreement.toFixed(2)}); ${fall}.`;
}

export function when(moment) {
  return new Date(moment).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

function capital(words) {
  return words[0].toUpperCase() + words.slice(1);
}
