"use strict";
// What the service is asked, and what it answers.

const RETRIES = 6; // of a request that the service is too busy for

/** No pictures: why, the field that it is about, the status, and the seconds to wait before asking
 * again, where that helps. */
class Refused extends Error {
  constructor(message, { field = null, status = 0, again = null } = {}) {
    super(message);
    Object.assign(this, { field, status, again });
  }
}

const access = {
  get key() { return remembered(sessionStorage, "key") ?? ""; },
  set key(value) { remember(sessionStorage, "key", value); },
};

async function ask(path, { headers = {}, ...rest } = {}) {
  const authorized = access.key ? { Authorization: `Bearer ${access.key}` } : {};
  let answer;
  try {
    // Without credentials, or a browser would ask for a password by itself where a key is missing.
    answer = await fetch(path, { ...rest, credentials: "omit", headers: { ...headers, ...authorized } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service cannot be reached: is it running?", { again: 3 });
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const { status } = answer;
  const seconds = Number(answer.headers.get("retry-after"));
  const again = answer.headers.has("retry-after") && seconds >= 0 ? seconds : null;
  try {
    return refused((await answer.json()).error, { status, again });
  } catch {
    return new Refused(`The service answered ${status} ${answer.statusText}.`, { status, again });
  }
}

/** From the service's own words; where it names no parameter, the sentence begins with it. */
function refused({ message, param }, more = {}) {
  const field = param ?? FIELDS.find((name) => new RegExp(`^(the )?${name}\\b`).test(message));
  const sentence = message.charAt(0).toUpperCase() + message.slice(1);
  return new Refused(/[.!?]$/.test(sentence) ? sentence : `${sentence}.`, { ...more, field });
}

/** The events of a request as [name, data]. `waits(error)` is told when the service is busy. */
async function* generated(body, signal, waits) {
  const headers = { "Content-Type": "application/json" };
  let answer;
  for (let asked = 1; !answer; asked += 1) {
    try {
      answer = await ask("/v1/generate", { method: "POST", headers, body, signal });
    } catch (error) {
      if (!(error.status === 429 || error.status === 503)) throw error;
      if (error.again === null || asked === RETRIES) throw error;
      waits(error);
      await pause(error.again, signal);
    }
  }
  let ended = false;
  for await (const [name, data] of events(answer.body)) {
    if (name === "error") throw refused(data.error);
    ended ||= name === "done";
    yield [name, data];
  }
  if (!ended) throw new Refused("The service stopped before the picture was done. Draw it again.");
}

/** Server-sent events, https://html.spec.whatwg.org/#parsing-an-event-stream, as far as a service
 * of ours sends them: one event and one line of JSON each. */
async function* events(stream) {
  let rest = "";
  for await (const text of pieces(stream.pipeThrough(new TextDecoderStream()))) {
    const blocks = (rest + text).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const said = Object.fromEntries(block.split("\n").map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon), line.slice(colon + 1).trimStart()];
      }));
      if (said.event) yield [said.event, JSON.parse(said.data)];
    }
  }
}

async function* pieces(stream) { // Safari's streams are not iterable
  const reader = stream.getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    yield value;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    });
  });
}

/** The body of a request. A seed is of 64 bits, more than a number of JavaScript: it stays text. */
function told({ seed, ...settings }) {
  const plain = JSON.stringify(settings);
  if (!seed) return plain;
  return `${plain.slice(0, -1)},"seed":${BigInt(seed)}}`;
}

function after(seed, by) {
  return String(BigInt(seed) + BigInt(by));
}

function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type });
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Refused("The picture cannot be read.", { field: "image" }));
    reader.readAsDataURL(blob);
  });
}
