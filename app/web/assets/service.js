// Talk to Hilum's own routes. Addresses are relative, so that the page also works under a path of a reverse proxy.

export class Refusal extends Error {
  constructor({ code, sentence, message }) {
    super(sentence || message);
    this.code = code;
    this.detail = message;
  }
}

const LOST = { code: "web.unreachable", sentence: "The Hilum server does not answer. Check that it is running, then try again." };
const KEPT_BYTES = 384 * 1024 * 1024;

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Refusal(LOST);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refusal(body?.error ?? { code: `http.${response.status}`, sentence: `The server answered with status ${response.status}.` });
}

export const read = async (path) => (await ask(path)).json();

// Each line of the answer is one JSON object, handed on as it arrives.
export async function follow(path, { signal, heard }) {
  const response = await ask(path, { method: "POST", signal });
  let failed = null;
  await lines(response.body.getReader(), (event) => (event.failed ? (failed = event.failed) : heard(event)));
  if (failed) throw new Refusal(failed);
}

async function lines(reader, heard) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const complete = rest.split("\n");
    rest = done ? "" : complete.pop();
    for (const line of complete) if (line) heard(JSON.parse(line));
    if (done) return;
  }
}

// fetch() cannot tell how much of a body has been sent, so an upload is an XMLHttpRequest.
export function send(file, name, { signal, sent, heard }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    let seen = 0;
    let failed = null;
    const take = (event) => (event.failed ? (failed = event.failed) : heard(event));
    const listen = (last) => {
      const complete = request.responseText.slice(seen);
      const end = last ? complete.length : complete.lastIndexOf("\n") + 1;
      seen += end;
      for (const line of complete.slice(0, end).split("\n")) if (line) take(JSON.parse(line));
    };
    request.open("POST", `api/files?name=${encodeURIComponent(name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => sent(event.loaded, event.total);
    request.onprogress = () => request.status === 200 && listen(false);
    request.onload = () => {
      if (request.status === 200) {
        listen(true);
        if (failed) reject(new Refusal(failed));
        else resolve();
        return;
      }
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // An answer that is not ours, such as a proxy's, carries no sentence.
      }
      reject(new Refusal(body?.error ?? { code: `http.${request.status}`, sentence: `The server answered with status ${request.status}.` }));
    };
    request.onerror = () => reject(new Refusal(LOST));
    request.onabort = () => reject(new DOMException("stopped", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

// The pictures that were drawn last, so that scrolling back costs nothing. Nothing is written to the browser's disk.
const kept = new Map();

export function image(sop, number) {
  const path = `api/images/${encodeURIComponent(sop)}/frames/${number}`;
  let wanted = kept.get(path);
  if (!wanted) {
    wanted = ask(path).then((response) => response.arrayBuffer()).then(unpackImage);
    wanted.catch(() => kept.delete(path));
    wanted.then((frame) => (wanted.bytes = frame.pixels.byteLength));
  }
  kept.delete(path);
  kept.set(path, wanted);
  let bytes = 0;
  for (const [other, frame] of [...kept].reverse()) {
    bytes += frame.bytes ?? 0;
    if (bytes > KEPT_BYTES && other !== path) kept.delete(other);
  }
  return wanted;
}

export async function heatMap(prediction, task, label) {
  const query = new URLSearchParams({ task, label });
  const buffer = await (await ask(`api/predictions/${prediction}/heat?${query}`)).arrayBuffer();
  const { header, at } = unpack(buffer);
  return { ...header, values: new Float32Array(buffer, at) };
}

// Cover the image place by place and compare what is lost with the map.
export const check = (prediction, { task, label }, heard) =>
  follow(`api/predictions/${prediction}/check?${new URLSearchParams({ task, label })}`, { heard });

// Little-endian length, JSON padded with spaces to a multiple of four, then the samples.
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  return { header: JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))), at: 4 + length };
}

function unpackImage(buffer) {
  const { header, at } = unpack(buffer);
  const pixels = header.kind === "rgb8" ? new Uint8Array(buffer, at) : new Uint16Array(buffer, at);
  const voi_luts = header.voi_luts.map((lut) => ({
    ...lut,
    entries: Uint8Array.from(atob(lut.entries), (letter) => letter.charCodeAt(0)),
  }));
  return { ...header, pixels, voi_luts };
}
