"use strict";
// The form: what it says as settings, and back; and what is wrong, beside the field.

const TEXTS = ["prompt", "negative_prompt", "model", "sampler", "schedule", "seed"];
const NUMBERS = ["steps", "guidance", "width", "height", "count"];
const OF_START = ["image", "mask", "strength"];
const FIELDS = [...TEXTS, ...NUMBERS, ...OF_START];

const byId = (id) => document.getElementById(id);
const form = byId("form");
const field = (name) => form.elements.namedItem(name === "mask" ? "image" : name);

let options = null; // what the service allows

function modelNow() {
  return options.models.find((one) => one.name === field("model").value) ?? options.models[0];
}

function made(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function chip(group, name, more, choose) {
  const input = made("input", { type: "radio", name: group, value: name });
  input.addEventListener("change", choose);
  return made("label", {}, input, made("span", {}, name, made("small", { textContent: more })));
}

/** Samplers as [family, those of it]. */
function families() {
  const names = [...new Set(options.samplers.map((one) => one.family))];
  return names.map((name) => [name, options.samplers.filter((one) => one.family === name)]);
}

/** Lists and limits, as the service has them. */
function fill(found) {
  options = found;
  field("model").replaceChildren(...options.models.map(({ name }) => new Option(name, name)));
  document.querySelector(".model").hidden = options.models.length < 2;
  field("sampler").replaceChildren(...families().map(([label, list]) => made(
    "optgroup", { label },
    ...list.map(({ name, about }) => made("option", { value: name, textContent: name, title: about })),
  )));
  field("schedule").replaceChildren(...options.schedules.map((name) => new Option(name, name)));
  field("steps").max = options.limits.steps;
  field("count").max = options.limits.count;
  field("strength").value = options.strength;
  fillModel();
}

function fillModel() {
  const { sizes, presets, from_pictures: fromPictures } = modelNow();
  for (const side of ["width", "height"]) {
    Object.assign(field(side), { min: sizes.minimum, max: sizes.maximum, step: sizes.multiple });
  }
  byId("presets").replaceChildren(...presets.map(({ name, ...preset }) => chip(
    "preset", name, `${preset.steps} steps`, () => put(preset),
  )));
  byId("ratios").replaceChildren(...sizes.usual.map(({ ratio, width, height }) => chip(
    "ratio", ratio, `${width}×${height}`, () => put({ width, height }),
  )));
  byId("start").hidden = !fromPictures;
  const { name, count, ...own } = usual();
  put(own);
}

/** What the model is drawn with where nothing else is said. */
function usual() {
  const { sizes: { width, height }, presets } = modelNow();
  return { ...presets.find(({ name }) => name === "Usual"), width, height, count: 1 };
}

/** What the form says. Throws Refused for what is no number. */
function settings() {
  const said = {};
  for (const name of TEXTS) said[name] = field(name).value;
  said.seed = said.seed.trim().replace(/^-1$/, ""); // as other programs say a random one
  if (!/^-?\d*$/.test(said.seed)) {
    throw new Refused("The seed must be a whole number, or empty for a random one.", { field: "seed" });
  }
  for (const name of NUMBERS) {
    const input = field(name);
    if (input.validity.badInput) {
      throw new Refused(`${input.labels[0].textContent} must be a number.`, { field: name });
    }
    said[name] = input.value === "" ? usual()[name] : Number(input.value);
  }
  return said;
}

/** Has the form say these settings; those that are left out stay. */
function put(some) {
  for (const [name, value] of Object.entries(some)) {
    if (FIELDS.includes(name) && field(name)) field(name).value = value ?? "";
  }
  changed();
}

/** Makes what follows from the fields follow. */
function changed() {
  if (!options) return;
  const said = (name) => field(name).value;
  const { sizes, presets } = modelNow();
  const preset = presets.find((one) => ["steps", "sampler", "schedule", "guidance"].every(
    (name) => String(one[name]) === said(name),
  ));
  const size = sizes.usual.find((one) => (
    String(one.width) === said("width") && String(one.height) === said("height")
  ));
  for (const input of form.querySelectorAll("[name=preset]")) input.checked = input.value === preset?.name;
  for (const input of form.querySelectorAll("[name=ratio]")) input.checked = input.value === size?.ratio;
  const summary = [said("sampler"), `${said("steps")} steps`, `${said("width")}×${said("height")}`];
  document.querySelector("#settings .summary").textContent = summary.join(" · ");
  document.querySelector("output[for=strength]").textContent = `${Math.round(100 * said("strength"))} %`;
}

/** Says what is wrong beside the field that it is about. Returns whether there is one. */
function wrongBeside(name, message) {
  const input = FIELDS.includes(name) ? field(name) : null;
  const holder = input?.closest(".field");
  if (!holder || holder.hidden) return false;
  const note = made("p", { className: "wrong", id: `${name}-wrong`, textContent: message });
  holder.append(note);
  input.setAttribute("aria-invalid", "true");
  input.setAttribute("aria-describedby", note.id);
  input.closest("details")?.setAttribute("open", "");
  input.focus();
  note.scrollIntoView({ block: "nearest" });
  return true;
}

function nothingWrong(holder = form) {
  for (const note of holder.querySelectorAll(".wrong")) note.remove();
  for (const input of holder.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}
