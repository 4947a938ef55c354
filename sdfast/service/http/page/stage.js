"use strict";
// The stage: what is drawn now, or what was drawn, and what can be done with it.

const stage = byId("stage");
const narrow = matchMedia("(max-width: 55rem)");
const frames = stage.querySelector(".frames");

/** What the stage shows: a run, and which of its pictures is meant. */
const shown = { run: null, at: 0 };

/** Frames for pictures to come, in the stage's place. */
function frame(labels, { width, height }) {
  const list = labels.map((label, k) => newFrame(label || placeOf(k, labels.length), label, width, height));
  lay(list, width / height);
  stage.querySelector(".about").hidden = true;
  return list;
}

function placeOf(at, count) {
  return count === 1 ? "Picture" : `Picture ${at + 1} of ${count}`;
}

function newFrame(name, label, width, height) {
  const image = made("img", { alt: "", width, height });
  const node = made("button", { type: "button", className: "frame", ariaLabel: name });
  node.append(image);
  if (label) {
    const words = label.split(/(?<=_)/).flatMap((word) => [word, made("wbr")]);
    node.append(made("span", { className: "label" }, ...words));
  }
  return {
    node,
    preview(address) {
      image.src = address;
      node.classList.add("early");
    },
    finish(blob, what) {
      image.src = urlOf(blob);
      image.alt = what;
      node.classList.remove("early");
      node.classList.add("done");
    },
    fail(message) {
      node.classList.remove("early");
      node.classList.add("failed");
      node.append(made("span", { className: "reason", textContent: message }));
    },
  };
}

function lay(list, ratio) {
  const across = columns(list.length, ratio);
  frames.style.setProperty("--across", across);
  frames.style.setProperty("--down", Math.ceil(list.length / across));
  frames.style.setProperty("--ratio", ratio);
  frames.classList.toggle("many", list.length > 1);
  frames.classList.toggle("labelled", list.some(({ node }) => node.querySelector(".label")));
  frames.classList.remove("alone");
  frames.replaceChildren(...list.map(({ node }) => node));
  frames.hidden = list.length === 0;
  stage.querySelector(".empty").hidden = list.length > 0;
}

/** The number of columns in which pictures are largest. */
function columns(count, ratio) {
  if (narrow.matches) return Math.min(count, 2);
  const sideOf = (across) => Math.min(
    stage.clientWidth / across, (innerHeight - 350) / Math.ceil(count / across) * ratio,
  );
  const most = Math.max(1, Math.min(count, Math.floor(stage.clientWidth / 140)));
  const all = Array.from({ length: most }, (_, k) => k + 1);
  return all.reduce((best, across) => (sideOf(across) > sideOf(best) ? across : best), 1);
}

/** Shows a run that is over; `null` for none. */
function show(run, at = 0) {
  Object.assign(shown, { run, at });
  stage.querySelector(".about").hidden = run === null;
  if (run === null) return lay([], 1);
  const { width, height, prompt } = run.settings;
  lay(run.pictures.map(({ blob, label }, k) => {
    const one = newFrame(label || placeOf(k, run.pictures.length), label, width, height);
    one.finish(blob, prompt);
    one.node.addEventListener("click", () => choose(k));
    one.node.addEventListener("dblclick", () => alone(true));
    return one;
  }), width / height);
  return choose(at);
}

function choose(at) {
  const { run } = shown;
  shown.at = at;
  [...frames.children].forEach((node, k) => node.setAttribute("aria-pressed", k === at));
  const picture = run.pictures[at], said = settingsOf(run, at);
  stage.querySelector(".caption").textContent = said.prompt;
  const facts = {
    Seed: said.seed,
    Sampler: `${said.sampler}, ${said.schedule}`,
    Steps: said.steps,
    Guidance: said.guidance,
    Size: `${said.width} × ${said.height}`,
    "Leave out": said.negative_prompt,
    Start: run.start && `a picture${run.mask ? " and a mask" : ""}, ${Math.round(100 * said.strength)} % changed`,
    Took: picture.seconds && `${picture.seconds.toFixed(picture.seconds < 10 ? 1 : 0)} s`,
  };
  stage.querySelector(".facts").replaceChildren(...Object.entries(facts)
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([name, value]) => made("div", {}, made("dt", { textContent: name }), made("dd", { textContent: value }))));
  Object.assign(byId("download"), { href: urlOf(picture.blob), download: fileName(said) });
  byId("enlarge").hidden = run.pictures.length === 1;
  alone(false);
}

/** Whether the picture that is meant is shown without the others. */
function alone(on) {
  frames.classList.toggle("alone", on);
  byId("enlarge").setAttribute("aria-pressed", on);
}

/** What drew one picture of a run. */
function settingsOf(run, at) {
  return { ...run.settings, ...run.pictures[at].settings };
}

function fileName({ prompt, seed }) {
  const words = prompt.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter(Boolean).join("-").slice(0, 60);
  return `${words || "picture"}-${seed}.png`;
}

const pace = stage.querySelector(".running");

/** How far the drawing is: {part 0…1 or null, done evaluations, seconds left, waiting: why it does
 * not begin}; `null` when it is over. */
function paced(far) {
  pace.hidden = far === null;
  for (const id of ["draw", "show-compare", "vary"]) { // not disabled: that would lose the focus
    byId(id).setAttribute("aria-disabled", far !== null);
  }
  document.title = far === null ? "sdfast" : "Drawing… · sdfast";
  if (far === null) return;
  const bar = pace.querySelector("progress");
  if (far.part !== null && !far.waiting) bar.value = far.part;
  else bar.removeAttribute("value");
  const left = far.left >= 1 ? ` · about ${Math.ceil(far.left)} s left` : "";
  const part = far.part === null ? `${far.done} evaluations` : `${Math.floor(100 * far.part)} %`;
  pace.querySelector(".pace").textContent = far.waiting || `Drawing · ${part}${left}`;
}

function alarm(message) {
  const note = stage.querySelector(".alert");
  note.hidden = message === null;
  note.textContent = message ?? "";
}

function say(words) {
  byId("said").textContent = words;
}
