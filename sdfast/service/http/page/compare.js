"use strict";
// The comparison: the same prompt and seed, once with each of several samplers.

const MOST_COMPARED = 16;
const comparing = byId("comparing");
const compared = byId("compared");

function openCompare() {
  const before = remembered(localStorage, "compared")?.split(" ") ?? ["euler", "euler_ancestral", "ddim"];
  const chosen = [field("sampler").value, ...before];
  compared.replaceChildren(...families().map(([family, list]) => made(
    "fieldset", {}, made("legend", { textContent: family }),
    ...list.map(({ name, about }) => made(
      "label", { className: "tick", title: about },
      made("input", { type: "checkbox", value: name, checked: chosen.includes(name) }), name,
    )),
  )));
  countCompared();
  comparing.showModal();
}

function chosenSamplers() {
  return Array.from(compared.querySelectorAll(":checked"), (input) => input.value);
}

function countCompared() {
  const { length } = chosenSamplers(), allowed = length > 0 && length <= MOST_COMPARED;
  comparing.querySelector(".count").textContent = length > MOST_COMPARED
    ? `${length} chosen: at most ${MOST_COMPARED}` : `${length} chosen`;
  byId("compare").disabled = !allowed;
}

function compare() {
  const names = chosenSamplers();
  remember(localStorage, "compared", names.join(" "));
  drawForm((said) => {
    const seed = said.seed || String(crypto.getRandomValues(new Uint32Array(1))[0]);
    return names.map((sampler) => ({ ...said, sampler, seed, count: 1 }));
  }, (job) => job.sampler);
}

function wireCompare() {
  byId("show-compare").addEventListener("click", () => { if (options && !drawing) openCompare(); });
  compared.addEventListener("change", countCompared);
  comparing.querySelector("form").addEventListener("submit", compare);
}
