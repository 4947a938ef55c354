"use strict";
// The picture to start from, and the mask that says which part of it is redrawn.

const LONGEST = 2048; // pixels a side of a picture to start from; larger ones are made smaller
const PLAIN = ["image/png", "image/jpeg", "image/webp"]; // types that the service reads

const start = {
  picture: null, // blob
  mask: null, // blob: white where it is redrawn; null for everywhere
  size: null, // [width, height]
};

/** Starts from a picture. `fit`: whether the form's size becomes the picture's. */
async function startFrom(blob, { mask = null, fit = true } = {}) {
  let picture, bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Refused("This is no picture that the browser can read.", { field: "image" });
  }
  start.size = sendableSize(bitmap);
  picture = await sendable(blob, bitmap, start.size);
  Object.assign(start, { picture, mask });
  if (fit) put({ ...fitting(start.size), strength: mask ? 1 : options.strength });
  await showStart();
}

function startFromNothing() {
  Object.assign(start, { picture: null, mask: null, size: null });
  field("image").value = "";
  return showStart();
}

async function showStart() {
  const holder = byId("start"), on = start.picture !== null;
  nothingWrong(holder);
  holder.querySelector(".pick").classList.toggle("unseen", on);
  holder.querySelector(".picked").hidden = !on;
  if (!on) return;
  holder.querySelector("img").src = urlOf(start.picture);
  byId("paint").querySelector("span").textContent = start.mask ? "Change the mask" : "Paint a mask";
  const canvas = holder.querySelector("canvas");
  [canvas.width, canvas.height] = start.size;
  if (start.mask) await paintedFrom(start.mask, canvas.getContext("2d"));
}

/** A picture's size, made smaller where the service would not read so many pixels. */
function sendableSize({ width, height }) {
  const most = options.limits.input_pixels;
  const scale = Math.min(1, LONGEST / Math.max(width, height), Math.sqrt(most / (width * height)));
  return [width, height].map((side) => Math.max(1, Math.floor(scale * side)));
}

/** A picture of a type and size that the service reads. */
function sendable(blob, bitmap, [width, height]) {
  if (width === bitmap.width && height === bitmap.height && PLAIN.includes(blob.type)) return blob;
  const canvas = made("canvas", { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  return blobOfCanvas(canvas, blob.type === "image/jpeg" ? "image/jpeg" : "image/png");
}

function blobOfCanvas(canvas, type = "image/png") {
  return new Promise((resolve) => canvas.toBlob(resolve, type));
}

/** Width and height that the model draws: of those that are allowed the nearest to a picture's ratio
 * and number of pixels. */
function fitting([width, height]) {
  const { minimum, maximum, multiple, pixels } = modelNow().sizes;
  const most = Math.min(width * height, pixels);
  const away = (w, h) => (
    Math.abs(Math.log((w * height) / (h * width))) + Math.abs(Math.log((w * h) / most)) / 4
  );
  let best = { width: minimum, height: minimum };
  for (let w = minimum; w <= maximum; w += multiple) {
    for (let h = minimum; h <= maximum && w * h <= pixels; h += multiple) {
      if (away(w, h) < away(best.width, best.height)) best = { width: w, height: h };
    }
  }
  return best;
}

/** Puts a mask's white into a context as paint. */
async function paintedFrom(mask, context) {
  const { width, height } = context.canvas;
  context.drawImage(await createImageBitmap(mask), 0, 0, width, height);
  const all = context.getImageData(0, 0, width, height), { data } = all;
  for (let k = 0; k < data.length; k += 4) data[k + 3] = data[k];
  context.putImageData(all, 0, 0);
  Object.assign(context, { globalCompositeOperation: "source-in", fillStyle: paint(context) });
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
}

/** Stripes, which are seen on a picture of any colour. */
function paint(context) {
  const side = Math.max(4, 2 * Math.round(Math.max(context.canvas.width, context.canvas.height) / 64));
  const tile = made("canvas", { width: side, height: side }), drawn = tile.getContext("2d");
  drawn.fillStyle = "rgb(59 91 219)";
  drawn.fillRect(0, 0, side, side);
  drawn.strokeStyle = "white";
  drawn.lineWidth = side / 5;
  for (const by of [-side, 0, side]) {
    drawn.moveTo(by - 1, side + 1);
    drawn.lineTo(by + side + 1, -1);
  }
  drawn.stroke();
  return context.createPattern(tile, "repeat");
}

/** Paint as a mask: white on black. Null where there is none. */
async function maskOf(canvas) {
  const { width, height } = canvas, flat = made("canvas", { width, height });
  const context = flat.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  if (!context.getImageData(0, 0, width, height).data.some((v, k) => k % 4 === 3 && v > 127)) {
    return null;
  }
  for (const [how, colour] of [["source-in", "white"], ["destination-over", "black"]]) {
    Object.assign(context, { globalCompositeOperation: how, fillStyle: colour });
    context.fillRect(0, 0, width, height);
  }
  return blobOfCanvas(flat);
}

// The dialog. Strokes are kept as what was done, so that one can be undone.

const masking = byId("masking");
const easel = {
  canvas: masking.querySelector("canvas"),
  ring: masking.querySelector(".brush"),
  base: null, // bitmap of the paint that was there
  paint: null, // what strokes are painted with
  strokes: [], // {erase, width, points}; without points it wipes all
  at: [0, 0], // of the brush
};

async function openMask() {
  const { canvas } = easel;
  [canvas.width, canvas.height] = start.size;
  Object.assign(easel, { base: null, strokes: [], at: start.size.map((side) => side / 2) });
  if (start.mask) {
    await paintedFrom(start.mask, canvas.getContext("2d"));
    easel.base = await createImageBitmap(canvas);
  }
  easel.paint = paint(canvas.getContext("2d"));
  masking.querySelector("img").src = urlOf(start.picture);
  masking.querySelector(".paper").style.setProperty("--ratio", start.size[0] / start.size[1]);
  masking.querySelector("[value=paint]").checked = true;
  masking.showModal();
  canvas.focus();
  showRing();
}

function brushWidth() {
  return Math.max(1, byId("brush").value / 100 * 0.7 * Math.min(...start.size));
}

function beginStroke(point) {
  const erase = masking.querySelector("[name=tool]:checked").value === "erase";
  easel.strokes.push({ erase, width: brushWidth(), points: [point] });
  paintStroke(easel.strokes.at(-1));
}

function continueStroke(point) {
  const stroke = easel.strokes.at(-1);
  if (!stroke?.points) return; // undone under the hand
  stroke.points.push(point);
  paintStroke({ ...stroke, points: stroke.points.slice(-2) });
}

function paintStroke({ erase, width, points }) {
  const context = easel.canvas.getContext("2d");
  if (!points) return context.clearRect(0, 0, easel.canvas.width, easel.canvas.height);
  Object.assign(context, {
    globalCompositeOperation: erase ? "destination-out" : "source-over",
    strokeStyle: easel.paint, lineWidth: width, lineCap: "round", lineJoin: "round",
  });
  context.beginPath();
  context.moveTo(...points[0]);
  for (const point of points) context.lineTo(...point);
  return context.stroke();
}

function repaint() {
  const context = easel.canvas.getContext("2d");
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, easel.canvas.width, easel.canvas.height);
  if (easel.base) context.drawImage(easel.base, 0, 0);
  easel.strokes.forEach(paintStroke);
}

function undo() {
  easel.strokes.pop();
  repaint();
}

function wipe() {
  easel.strokes.push({});
  repaint();
}

async function useMask() {
  const had = start.mask !== null;
  start.mask = await maskOf(easel.canvas);
  masking.close();
  if (had !== (start.mask !== null)) put({ strength: start.mask ? 1 : options.strength });
  await showStart();
}

function pointOf(event) {
  const { canvas } = easel, box = canvas.getBoundingClientRect();
  return [
    (event.clientX - box.left) * canvas.width / box.width,
    (event.clientY - box.top) * canvas.height / box.height,
  ];
}

function showRing() {
  const { canvas, ring, at } = easel, scale = canvas.clientWidth / canvas.width;
  ring.hidden = false;
  const side = `${brushWidth() * scale}px`;
  Object.assign(ring.style, {
    width: side, height: side, left: `${at[0] * scale}px`, top: `${at[1] * scale}px`,
  });
}

function moveBrush(point, paints) {
  easel.at = point.map((v, k) => Math.min(start.size[k], Math.max(0, v)));
  if (paints) continueStroke(easel.at);
  showRing();
}

function resizeBrush(by) {
  byId("brush").value = Number(byId("brush").value) + by;
  showRing();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function maskKey(event) {
  const key = event.key.toLowerCase();
  if (key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if (key === "[" || key === "]") resizeBrush(key === "[" ? -4 : 4);
  else if (event.target !== easel.canvas) return;
  else if (key === " ") beginStroke(easel.at);
  else if (ARROWS[event.key]) {
    const by = brushWidth() / 4;
    if (event.shiftKey) beginStroke(easel.at);
    moveBrush(easel.at.map((v, k) => v + by * ARROWS[event.key][k]), event.shiftKey);
  } else return;
  event.preventDefault();
}

function wireMask() {
  const { canvas } = easel;
  let paints = false;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    paints = true;
    easel.at = pointOf(event);
    beginStroke(easel.at);
    showRing();
  });
  canvas.addEventListener("pointermove", (event) => moveBrush(pointOf(event), paints));
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => { paints = false; });
  }
  byId("brush").addEventListener("input", showRing);
  byId("undo").addEventListener("click", undo);
  byId("wipe").addEventListener("click", wipe);
  byId("masked").addEventListener("click", useMask);
  masking.addEventListener("keydown", maskKey);
}
