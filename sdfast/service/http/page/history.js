"use strict";
// The history: runs that are kept, the newest first, in a strip that arrows go through.

const strip = document.querySelector("#history .strip");
let kept = []; // runs

async function recall() {
  const [found, over] = bounded(await runs.all());
  kept = found;
  over.forEach((run) => runs.remove(run));
  list();
  if (kept.length) showKept(0, { focus: false });
}

async function keep(run) {
  run.thumb = await thumbOf(run.pictures[0].blob);
  const [found, over] = bounded([run, ...kept]);
  kept = found;
  for (const old of over) {
    runs.remove(old);
    release(old);
  }
  runs.put(run);
  list();
  showKept(0, { focus: false });
}

const UNDO = 12; // seconds in which what was removed can be brought back
let removed = null; // {before, timer}

/** Removes runs; for a while they can be brought back. */
async function forget(some) {
  clearTimeout(removed?.timer);
  const at = kept.indexOf(some[0]), before = kept;
  kept = kept.filter((run) => !some.includes(run));
  removed = { before, timer: setTimeout(() => restorable(null), 1000 * UNDO) };
  await Promise.all(some.map((run) => runs.remove(run)));
  some.forEach(release);
  restorable(removed);
  list();
  if (kept.length) showKept(Math.min(at, kept.length - 1), { focus: false });
  else show(null);
  say("Removed. Undo brings it back.");
}

async function restore() {
  const added = kept.filter((run) => !removed.before.includes(run));
  kept = [...added, ...removed.before];
  await Promise.all(kept.map((run) => runs.put(run)));
  restorable(null);
  list();
  showKept(added.length);
}

function restorable(what) {
  removed = what;
  byId("restore").hidden = what === null;
  if (what === null) byId("history").hidden = kept.length === 0;
}

function list() {
  byId("history").hidden = kept.length === 0 && removed === null;
  byId("clear").hidden = kept.length === 0;
  strip.replaceChildren(...kept.map((run, k) => {
    const node = made("button", { type: "button", role: "option", tabIndex: -1, title: run.settings.prompt });
    node.ariaLabel = `${run.settings.prompt}, ${run.pictures.length === 1 ? "1 picture" : `${run.pictures.length} pictures`}`;
    node.append(made("img", { alt: "", src: urlOf(run.thumb ?? run.pictures[0].blob) }));
    if (run.pictures.length > 1) {
      node.append(made("span", { className: "badge", textContent: run.pictures.length }));
    }
    node.addEventListener("click", () => showKept(k));
    return node;
  }));
}

function showKept(at, { focus = true } = {}) {
  const run = kept[at];
  show(run);
  [...strip.children].forEach((node, k) => {
    node.setAttribute("aria-selected", k === at);
    node.tabIndex = k === at ? 0 : -1;
  });
  const node = strip.children[at];
  if (focus) node.focus({ preventScroll: true });
  strip.scrollTo({ left: node.offsetLeft - strip.clientWidth / 2 + node.clientWidth / 2 });
}

/** Goes to another run by a key. Returns whether it was one for that. */
function historyKey(key) {
  const last = kept.length - 1, at = kept.indexOf(shown.run);
  const to = { ArrowLeft: Math.max(0, at - 1), ArrowRight: Math.min(last, at + 1), Home: 0, End: last }[key];
  if (to === undefined || last < 0) return false;
  showKept(to);
  return true;
}

async function thumbOf(blob) {
  const whole = await createImageBitmap(blob), side = 144;
  const scale = side / Math.min(whole.width, whole.height);
  const canvas = made("canvas", { width: side, height: side });
  const [w, h] = [whole.width * scale, whole.height * scale];
  canvas.getContext("2d").drawImage(whole, (side - w) / 2, (side - h) / 2, w, h);
  return blobOfCanvas(canvas);
}
