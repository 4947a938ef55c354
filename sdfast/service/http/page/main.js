"use strict";
// Drawing, and what keys and buttons do.

const AT_ONCE = 4; // requests of a comparison that the service has at a time
const VARIATIONS = 4;
const PREVIEWS = 2; // every how many evaluations one is asked for

let drawing = null; // what stops it

/** Draws what the form says. `jobs(settings)` → the settings of each request. */
function drawForm(jobs = (said) => [said], labelOf = () => "") {
  const { picture, mask } = start;
  return tried(() => {
    const strength = picture && { strength: Number(field("strength").value) };
    const said = { ...settings(), ...strength };
    if (!said.prompt.trim()) {
      throw new Refused("Say in a few words what to draw.", { field: "prompt" });
    }
    return make(jobs(said), { start: picture, mask }, labelOf);
  });
}

function vary() {
  const { run, at } = shown;
  const last = run.pictures.map(({ seed }) => BigInt(seed)).reduce((a, b) => (a > b ? a : b));
  const count = Math.min(VARIATIONS, options.limits.count);
  const said = { ...settingsOf(run, at), seed: after(last, 1), count };
  return tried(() => make([said], run, () => ""));
}

/** Does it, and tells the person what went wrong. */
async function tried(what) {
  if (!options || drawing) return;
  drawing = new AbortController();
  alarm(null);
  nothingWrong();
  try {
    await what();
  } catch (error) {
    if (kept.includes(shown.run)) show(shown.run, shown.at);
    else show(null);
    complain(error);
  } finally {
    drawing = null;
    paced(null);
  }
}

function complain(error) {
  if (error.name === "AbortError") return say("Cancelled.");
  if (error.status === 401) return lock();
  if (!(error instanceof Refused)) console.error(error);
  if (error.field && wrongBeside(error.field, error.message)) return say(error.message);
  return alarm(error.message);
}

/** Draws requests into frames, and keeps what they bring as one run. */
async function make(jobs, { start: picture, mask }, labelOf) {
  const { signal } = drawing;
  const begun = jobs.map((job) => {
    const many = Math.floor(Math.max(1, Math.min(job.count, options.limits.count)));
    return { job, label: labelOf(job), frames: Array(many).fill(null), far: { done: 0 } };
  });
  const list = frame(begun.flatMap((one) => one.frames.map(() => one.label)), jobs[0]);
  for (const one of begun) one.frames = list.splice(0, one.frames.length);
  const more = {
    ...(picture && { image: await dataUrl(picture) }), ...(mask && { mask: await dataUrl(mask) }),
  };
  say("Drawing.");
  tellPace(begun);
  if (narrow.matches) stage.scrollIntoView({ block: "start" });
  const waiting = [...begun];
  const lane = async () => {
    for (let one = waiting.shift(); one; one = waiting.shift()) {
      try {
        one.pictures = await pictured(one, more, signal, () => tellPace(begun));
      } catch (error) {
        one.error = error;
        if (error.name !== "AbortError") one.frames.forEach((f) => f.fail(error.message));
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
  const pictures = begun.flatMap((one) => one.pictures ?? []);
  const failed = begun.find((one) => one.error);
  if (pictures.length === 0) throw failed.error;
  const { seed, ...plain } = jobs[0];
  const id = `${Date.now()}-${Math.random()}`;
  await keep({ id, when: Date.now(), settings: plain, start: picture, mask, pictures });
  if (failed) complain(failed.error);
  else say(pictures.length === 1 ? "The picture is done." : `${pictures.length} pictures are done.`);
}

/** One request: its progress and previews as they come, and its pictures. */
async function pictured(one, more, signal, tell) {
  const { job, label, frames: places, far } = one, pictures = [], begun = performance.now();
  const previewed = modelNow().previews && { preview_every: PREVIEWS };
  const body = told({ ...job, ...more, ...previewed, stream: true });
  const waits = (error) => {
    far.busy = `${error.message} Asking again in ${Math.ceil(error.again)} s.`;
    tell();
  };
  for await (const [name, data] of generated(body, signal, waits)) {
    if (name === "progress") {
      Object.assign(far, data, { busy: null });
      tell();
    } else if (name === "preview") {
      data.images.forEach((base64, k) => places[k]?.preview(`data:image/png;base64,${base64}`));
    } else if (name === "image") {
      const { seed } = data, blob = blobOf(data.b64_json, "image/png");
      places[data.index]?.finish(blob, job.prompt);
      const { sampler } = job;
      const exact = job.seed ? after(job.seed, data.index) : String(seed);
      const seconds = (performance.now() - begun) / 1000;
      pictures[data.index] = { blob, label, seed: exact, seconds, settings: { sampler, seed: exact } };
    }
  }
  return pictures;
}

function tellPace(begun) {
  const fars = begun.map((one) => one.far), sum = (list) => list.reduce((a, b) => a + b, 0);
  const busy = fars.every((far) => far.busy) && fars[0].busy;
  const queued = fars.every((far) => far.state === "waiting") && "Waiting for its turn";
  const parts = fars.map(({ state, done, evaluations }) => (
    state === "done" ? 1 : done / (evaluations || Infinity)
  ));
  const unknown = fars.length === 1 && fars[0].evaluations === null;
  paced({
    part: unknown ? null : sum(parts) / parts.length, done: sum(fars.map((far) => far.done)),
    left: fars.every((far) => far.state) ? Math.max(...fars.map((far) => far.seconds_left ?? 0)) : 0,
    waiting: busy || queued,
  });
}

async function reuse() {
  const { run, at } = shown;
  nothingWrong();
  await (run.start ? startFrom(run.start, { mask: run.mask, fit: false }) : startFromNothing());
  const said = settingsOf(run, at);
  if (!options.models.some(({ name }) => name === said.model)) delete said.model;
  put({ ...said, count: 1 });
  byId("settings").open = true;
  field("prompt").focus();
  say("The settings of the picture are in the form.");
}

async function startFromFile(file) {
  nothingWrong(byId("start"));
  try {
    await startFrom(file);
  } catch (error) {
    complain(error);
  }
}

async function startFromShown() {
  await startFromFile(shown.run.pictures[shown.at].blob);
  byId("start").scrollIntoView({ block: "nearest" });
  byId("paint").focus();
  say("The next drawing starts from this picture.");
}

/** Asks for the key. */
function lock() {
  const again = access.key !== "";
  byId("access").hidden = false;
  nothingWrong(byId("access"));
  if (again) {
    byId("access").append(made("p", { className: "wrong", textContent: "The service does not know this key." }));
  }
  byId("key").focus();
}

async function begin() {
  for (;;) {
    try {
      const found = await (await ask("/v1/options")).json();
      if (!options) fill(found);
      byId("access").hidden = true;
      return alarm(null);
    } catch (error) {
      if (error.status === 401) return lock();
      alarm(error.message);
      await pause(error.again ?? 5);
    }
  }
}

// Colours, keys and buttons.

function dark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function showTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", dark());
  document.documentElement.classList.toggle("dark", dark());
}

function wireTheme() {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showTheme());
  showTheme(remembered(localStorage, "theme"));
  byId("theme").addEventListener("click", () => {
    showTheme(dark() ? "light" : "dark");
    remember(localStorage, "theme", document.documentElement.dataset.theme);
  });
}

function wireKeys() {
  document.addEventListener("keydown", (event) => {
    const opened = document.querySelector("dialog[open]");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      if (opened === comparing && !byId("compare").disabled) comparing.querySelector("form").requestSubmit();
      else if (!opened) drawForm();
    } else if (opened || event.altKey || event.ctrlKey || event.metaKey) {
      // theirs
    } else if (event.key === "Escape") {
      drawing?.abort();
    } else if (!event.target.closest("input, textarea, select") && historyKey(event.key)) {
      event.preventDefault();
    }
  });
}

function wirePictures() {
  field("image").addEventListener("change", () => {
    const [file] = field("image").files;
    if (file) startFromFile(file);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file && options) startFromFile(file);
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (file && options) startFromFile(file);
  });
}

function wire(deeds) {
  for (const [id, deed] of Object.entries(deeds)) byId(id).addEventListener("click", deed);
}

async function useKey() {
  access.key = byId("key").value.trim();
  await begin();
  if (options) field("prompt").focus();
}

wire({
  vary, reuse, "start-from": startFromShown, forget: () => forget([shown.run]), clear: () => forget(kept), restore,
  enlarge: () => alone(!frames.classList.contains("alone")), cancel: () => drawing?.abort(),
  paint: openMask, unpick: startFromNothing, "show-keys": () => byId("keys").showModal(),
  swap: () => put({ width: field("height").value, height: field("width").value }), "use-key": useKey,
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  drawForm();
});
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  useKey();
});
form.addEventListener("input", (event) => {
  const holder = event.target.closest(".field");
  if (holder) nothingWrong(holder);
  changed();
});
field("model").addEventListener("change", fillModel);
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
}
wireTheme();
wireKeys();
wirePictures();
wireMask();
wireCompare();
byId("settings").open = !narrow.matches;
recall();
begin();
