// The page: a picture in, labels out. No library and no address but this server's own.
"use strict";

const at = (id) => document.getElementById(id);
const WORST_SIDE = 1600; // photographs are made smaller before they travel; networks take far less
let models = [];
let picture = null; // Blob of the last picture
let key = "";
let stream = null;
let asked = 0;

async function call(path, options = {}) {
  const headers = key ? { "X-API-Key": key } : {};
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
  }
  if (!answer.ok) {
    const text = await answer.text();
    let sentence = text;
    try { sentence = JSON.parse(text).error; } catch { /* not JSON: shown as it is */ }
    throw new Error(sentence || `the server answered ${answer.status}`);
  }
  return answer;
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").className = bad ? "bad" : "";
}

async function loadModels() {
  try {
    models = (await (await call("v1/models")).json()).models;
  } catch (error) {
    say(error.message, true);
    return;
  }
  at("key-form").hidden = true;
  const groups = [...new Set(models.map((model) => model.group))];
  at("group").replaceChildren(...groups.map((name) => new Option(name, name)));
  chooseGroup();
}

function chooseGroup() {
  const mine = models.filter((model) => model.group === at("group").value);
  at("model").replaceChildren(...mine.map((model) => {
    const version = mine.some((other) => other.version !== model.version) ? `, version ${model.version}` : "";
    return new Option(`${model.target} ${model.precision}${version}`, `${model.name}/${model.version}`);
  }));
  showModel();
}

const chosen = () => models.find((model) => `${model.name}/${model.version}` === at("model").value);

async function showModel() {
  const model = chosen();
  if (!model) return;
  const size = model.preprocessing;
  const facts = {
    Runtime: model.runtime,
    Why: model.reason,
    Threads: model.threads || "not told",
    Input: `${size.height} x ${size.width}, ${size.channels} channel${size.channels > 1 ? "s" : ""}`,
    Classes: model.labels.length,
  };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
  at("card").textContent = await (await call(`v1/models/${model.name}/card`)).text().catch(() => "");
  if (picture) ask();
}

async function take(blob) {
  if (!blob) return;
  stopCamera();
  picture = blob;
  const image = at("picture");
  URL.revokeObjectURL(image.src);
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 128);
  image.onerror = () => { image.hidden = true; at("invitation").hidden = false; };
  image.src = URL.createObjectURL(blob);
  image.alt = blob.name ? `The chosen picture, ${blob.name}` : "The chosen picture";
  image.hidden = false;
  at("invitation").hidden = true;
  at("again").hidden = false;
  await ask();
}

async function smaller(blob) {
  let bitmap;
  try { bitmap = await createImageBitmap(blob, { imageOrientation: "none" }); } catch { return blob; }
  const scale = WORST_SIDE / Math.max(bitmap.width, bitmap.height);
  if (scale >= 1) return blob;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((small) => done(small || blob), "image/png"));
}

async function ask() {
  const model = chosen();
  if (!model || !picture) return;
  const number = ++asked;
  say("Looking ...");
  try {
    const query = new URLSearchParams({ model: model.name, version: model.version, top_k: 5 });
    const started = performance.now();
    const body = await smaller(picture);
    const result = await (await call(`v1/predict?${query}`, { method: "POST", body })).json();
    if (number !== asked) return; // a newer picture is on its way
    show(result, performance.now() - started);
  } catch (error) {
    if (number !== asked) return;
    at("labels").replaceChildren();
    at("time").textContent = "";
    say(error.message, true);
  }
}

function show(result, milliseconds) {
  at("labels").replaceChildren(...result.predictions.map((entry) => {
    const line = document.createElement("li");
    const label = document.createElement("span");
    const value = document.createElement("span");
    const bar = document.createElement("div");
    const fill = document.createElement("i");
    label.textContent = entry.label;
    value.textContent = `${(100 * entry.probability).toFixed(1)} %`;
    bar.className = "bar";
    bar.setAttribute("aria-hidden", "true");
    fill.style.width = `${100 * entry.probability}%`;
    bar.append(fill);
    line.append(label, value, bar);
    return line;
  }));
  const first = result.predictions[0];
  const doubt = result.doubtful ? " - perhaps none of the classes" : "";
  say(`${first.label}, ${(100 * first.probability).toFixed(1)} %${doubt}`);
  const times = result.milliseconds;
  at("time").textContent = `${times.run.toFixed(2)} ms in ${result.target} ${result.precision}, `
    + `${times.total.toFixed(2)} ms on the server, ${milliseconds.toFixed(0)} ms from here`;
}

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`The camera cannot be used: ${error.message}`, true);
    return;
  }
  const video = at("video");
  video.srcObject = stream;
  video.hidden = false;
  at("picture").hidden = true;
  at("invitation").hidden = true;
  at("shoot").hidden = false;
  await video.play();
  at("shoot").focus();
}

function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  at("video").hidden = true;
  at("shoot").hidden = true;
}

function shoot() {
  const video = at("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(take, "image/png");
}

at("drop").addEventListener("click", () => (stream ? shoot() : at("file").click()));
at("file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
at("group").addEventListener("change", chooseGroup);
at("model").addEventListener("change", showModel);
at("again").addEventListener("click", ask);
at("camera").addEventListener("click", startCamera);
at("shoot").addEventListener("click", shoot);
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  loadModels().then(ask);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); at("drop").classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); at("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
at("camera").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
loadModels();
