// Take files from a drop, a chooser or a folder, send them one by one, then have their studies diagnosed.

import { h, plural } from "./elements.js";
import { follow, send } from "./service.js";

const LINES_KEPT = 300;

export class Intake {
  constructor({ arrived, answered, finished, settled }) {
    this.arrived = arrived; // a study's first image is stored
    this.answered = answered; // one image of a study was diagnosed
    this.finished = finished; // nothing more to come for a study
    this.settled = settled; // no longer busy
    this.stop = null;
    this.element = this.build();
    this.quiet("Nothing in progress.");
    acceptDrops(document.body, (files) => this.take(files));
  }

  get busy() {
    return this.stop !== null;
  }

  build() {
    const choose = (attributes) => {
      const input = h("input", {
        type: "file",
        multiple: true,
        class: "hidden",
        tabindex: "-1",
        "aria-hidden": "true",
        ...attributes,
        onchange: () => {
          this.take([...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
          input.value = "";
        },
      });
      return input;
    };
    const files = choose({ id: "choose-files" });
    const folder = choose({ id: "choose-folder", webkitdirectory: true });
    this.line = h("span", { class: "activity-line" });
    this.cancel = h("button", { type: "button", class: "small", onclick: () => this.stop?.abort() }, "Stop");
    this.bar = h("progress", { max: "1", value: "0", "aria-label": "Progress" });
    this.list = h("ul", { class: "activity-list", "aria-label": "Files", tabindex: "0" });
    this.samples = h("div", { class: "samples" });
    return h(
      "section",
      { class: "intake", "aria-label": "Add images" },
      h(
        "div",
        { class: "drop" },
        h("strong", {}, "Drop DICOM files, a folder or a zip"),
        h(
          "div",
          { class: "buttons" },
          h("button", { type: "button", class: "primary", onclick: () => files.click() }, "Choose files"),
          h("button", { type: "button", onclick: () => folder.click() }, "Choose folder"),
          files,
          folder,
        ),
        this.samples,
      ),
      h(
        "div",
        { class: "activity" },
        h("div", { class: "activity-head", role: "status", "aria-live": "polite" }, this.line, this.cancel),
        this.bar,
        this.list,
      ),
    );
  }

  offer(samples) {
    const buttons = samples.map(({ name, title, detail }) =>
      h("button", { type: "button", class: "small", title: detail, onclick: () => this.takeSample(name, title) }, title),
    );
    this.samples.replaceChildren(h("span", { class: "quiet" }, "Sample:"), ...buttons);
  }

  quiet(text) {
    this.line.textContent = text;
    this.cancel.disabled = true;
    this.bar.value = 0;
  }

  say(text, share) {
    this.line.textContent = text;
    this.cancel.disabled = false;
    this.bar.value = share;
  }

  note(name, text, state) {
    const row = h("li", { class: state }, h("span", { class: "name", title: name }, name), h("span", { class: "state" }, text));
    this.list.append(row);
    while (this.list.children.length > LINES_KEPT) this.list.firstChild.remove();
    this.list.scrollTop = this.list.scrollHeight;
    return (words, nowState) => {
      row.lastChild.textContent = words;
      if (nowState) row.className = nowState;
    };
  }

  // A folder's DICOMDIR only points at files that are sent themselves.
  async take(files) {
    const wanted = files.length > 1 ? files.filter(({ name }) => !/(^|\/)DICOMDIR$/i.test(name)) : files;
    if (!wanted.length || this.refuseIfBusy()) return;
    const total = wanted.reduce((sum, { file }) => sum + file.size, 0) || 1;
    let before = 0;
    await this.work(async (signal, tally) => {
      for (const [index, { file, name }] of wanted.entries()) {
        const update = this.note(name, "waiting", "pending");
        const head = wanted.length > 1 ? `File ${index + 1} of ${wanted.length}` : "Sending";
        try {
          await send(file, name, {
            signal,
            sent: (loaded, size) => {
              const whole = loaded >= size;
              this.say(whole ? `${head}: checking and storing` : head, (before + loaded) / total);
              update(whole ? "storing" : `${Math.floor((100 * loaded) / (size || 1))} %`);
            },
            heard: tally.hear(name, update),
          });
        } catch (problem) {
          if (problem.name === "AbortError") {
            update("stopped", "refused");
            throw problem;
          }
          tally.refused++;
          update(problem.message, "refused");
        }
        before += file.size;
      }
    });
  }

  async takeSample(name, title) {
    if (this.refuseIfBusy()) return;
    await this.work(async (signal, tally) => {
      const update = this.note(title, "storing", "pending");
      this.say(`Loading the sample: ${title}`, 0.1);
      await follow(`api/samples/${encodeURIComponent(name)}`, { signal, heard: tally.hear(title, update) });
    });
  }

  async diagnose(study, ageYears) {
    if (this.refuseIfBusy()) return;
    await this.guarded(async (signal) => {
      this.quiet(outcome(await this.read(study, signal, ageYears)).join(", ") + ".");
    });
  }

  refuseIfBusy() {
    if (this.busy) this.note("Not started", "wait until the running work is done, or stop it", "refused");
    return this.busy;
  }

  async work(sendAll) {
    this.list.replaceChildren();
    const tally = new Tally(this.arrived);
    await this.guarded(async (signal) => {
      await sendAll(signal, tally);
      const total = { read: 0, failed: 0 };
      for (const study of tally.unread) {
        const { read, failed } = await this.read(study, signal);
        total.read += read;
        total.failed += failed;
      }
      for (const study of tally.studies) if (!tally.unread.has(study)) this.finished(study);
      this.quiet([words(tally), ...outcome(total)].join(", ") + ".");
    });
  }

  async guarded(task) {
    this.stop = new AbortController();
    try {
      await task(this.stop.signal);
    } catch (problem) {
      if (problem.name === "AbortError") this.quiet("Stopped. What was stored and diagnosed until then is kept.");
      else {
        this.quiet("Not finished.");
        this.note("Problem", problem.message, "refused");
      }
    } finally {
      this.stop = null;
      this.cancel.disabled = true;
      this.settled();
    }
  }

  // How many images of the study were diagnosed, and how many could not be.
  async read(study, signal, ageYears) {
    const age = ageYears === undefined ? "" : `?age=${encodeURIComponent(ageYears)}`;
    let failed = 0;
    let done = 0;
    let of = 0;
    this.say("Diagnosing: reading the images", 0);
    try {
      await follow(`api/studies/${encodeURIComponent(study)}/predictions${age}`, {
        signal,
        heard: (event) => {
          if (event.images !== undefined) {
            of = event.images;
            return;
          }
          done++;
          this.say(of > 1 ? `Diagnosing: image ${Math.min(done, of)} of ${of}` : "Diagnosing", of ? done / of : 0.5);
          if (event.error) {
            failed++;
            this.note(`Image ${done}`, event.error.sentence, "refused");
          } else this.answered(study, event);
        },
      });
    } finally {
      this.finished(study);
    }
    return { read: done - failed, failed };
  }
}

// What became of the files of one drop.
class Tally {
  constructor(arrived) {
    this.arrived = arrived;
    this.studies = new Set();
    this.unread = new Set();
    this.stored = 0;
    this.known = 0;
    this.refused = 0;
  }

  hear(name, update) {
    const own = { stored: 0, known: 0, refused: 0 };
    return (event) => {
      if (event.error) {
        own.refused++;
        this.refused++;
      } else {
        const isNew = event.outcome === "stored";
        own[isNew ? "stored" : "known"]++;
        this[isNew ? "stored" : "known"]++;
        const first = !this.studies.has(event.study_instance_uid);
        this.studies.add(event.study_instance_uid);
        if (!event.diagnosed) this.unread.add(event.study_instance_uid);
        if (first) this.arrived(event.study_instance_uid);
      }
      const single = own.stored + own.known + own.refused === 1;
      if (single && event.error) update(event.error.sentence, "refused");
      else if (single) update(own.stored ? "stored" : "already stored", "stored");
      else update(words(own), own.stored + own.known ? "stored" : "refused");
    };
  }
}

function words({ stored, known, refused }) {
  const parts = [];
  if (stored) parts.push(`${plural(stored, "file")} stored`);
  if (known) parts.push(`${plural(known, "file")} already stored`);
  if (refused) parts.push(`${plural(refused, "file")} refused`);
  return parts.join(", ") || "Nothing stored";
}

function outcome({ read, failed }) {
  const parts = read || !failed ? [`${plural(read, "image")} diagnosed`] : [];
  if (failed) parts.push(`${plural(failed, "image")} could not be read`);
  return parts;
}

// Anywhere on the page; a drop beside a small target must not make the browser open the file instead.
function acceptDrops(target, take) {
  let depth = 0;
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const show = (on) => target.classList.toggle("dropping", on);
  target.addEventListener("dragenter", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth++;
    show(true);
  });
  target.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  target.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) show(false);
  });
  target.addEventListener("drop", async (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth = 0;
    show(false);
    // The entries are gone after the first await, so they are all taken first.
    const entries = [...event.dataTransfer.items].map((one) => one.webkitGetAsEntry?.()).filter(Boolean);
    const found = [];
    if (entries.length) for (const entry of entries) await walk(entry, found);
    else found.push(...[...event.dataTransfer.files].map((file) => ({ file, name: file.name })));
    take(found);
  });
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ file, name: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    // readEntries hands out a hundred at a time and ends with an empty list.
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return;
    for (const child of batch) await walk(child, found);
  }
}
