// The page: a picture in, labels out. No library and no address but this server's own.
import { open_picture } from "./orientation.mjs";

const at = (id) => document.getElementById(id);
const WORST_SIDE = 1600; // photographs are made smaller before they travel; networks take far less
let models = [];
let mostBytes = 0; // of one request, as the server says
const AT_ONCE = 16; // pictures in one request
const PART_BYTES = 512; // of a form beside a picture and its name
let pictures = []; // Blobs that were chosen last
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
    const error = new Error(sentence || `the server answered ${answer.status}`);
    throw Object.assign(error, { status: answer.status });
  }
  return answer;
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").className = bad ? "bad" : "";
}

async function loadModels() {
  try {
    ({ models, max_body_bytes: mostBytes } = await (await call("v1/models")).json());
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
  const many = model.labels.length > 6 ? ", ..." : "";
  const classes = `${model.labels.slice(0, 6).join(", ")}${many}`;
  document.title = `${model.name}: ${classes}`;
  at("about").textContent = `${model.name} knows ${model.labels.length} classes: ${classes}`;
  showExamples(model);
  showProgram(model);
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
  if (pictures.length) ask();
  const card = await call(`v1/models/${model.name}/versions/${model.version}/card`);
  const text = await card.text().catch(() => "");
  if (model === chosen()) at("card").textContent = text;
}

async function showExamples(model) {
  at("examples-block").hidden = true;
  const buttons = await Promise.all(model.examples.map(async (label, number) => {
    const path = `v1/models/${model.name}/versions/${model.version}/examples/${number}`;
    const blob = await (await call(path)).blob();
    const button = document.createElement("button");
    const image = document.createElement("img");
    button.type = "button";
    image.onload = () => URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(blob);
    image.alt = `Example of ${label}`;
    button.append(image);
    button.addEventListener("click", () => take([new File([blob], `example of ${label}.png`, { type: blob.type })]));
    return button;
  }));
  if (model !== chosen()) return;
  at("examples").replaceChildren(...buttons);
  at("examples-block").hidden = buttons.length === 0;
}

function showProgram(model) {
  const query = new URLSearchParams({ model: model.name, version: model.version, top_k: 5 });
  const address = new URL(`v1/predict?${query}`, location.href).href.replaceAll("'", "%27");  // quoted in a shell
  const key = at("key-form").dataset.used ? "X-API-Key: YOUR-KEY" : "";
  at("curl").textContent = `curl${key ? ` -H '${key}'` : ""} --data-binary @image.png '${address}'`;
  at("python").textContent = [
    "import json",
    "import urllib.request",
    "",
    'with open("image.png", "rb") as file:',
    `    request = urllib.request.Request("${address}", file.read(), {${key ? '"X-API-Key": "YOUR-KEY"' : ""}})`,
    "with urllib.request.urlopen(request) as answer:",
    "    answer = json.load(answer)",
    'there = answer.get("present", answer["predictions"][:1])',
    'print(", ".join(entry["label"] for entry in there) or "none of the classes")',
  ].join("\n");
}

function clear() {
  asked += 1;
  stopCamera();
  pictures = [];
  URL.revokeObjectURL(at("picture").src);
  at("picture").hidden = true;
  at("picture").removeAttribute("src");
  at("invitation").hidden = false;
  at("again").hidden = at("clear").hidden = true;
  at("drop").removeAttribute("aria-label");
  at("labels").replaceChildren();
  at("several").replaceChildren();
  at("time").textContent = "";
  say("No picture yet.");
  at("drop").focus();
}

async function take(files) {
  const blobs = [...(files || [])].filter((file) => file);
  if (!blobs.length) return;
  stopCamera();
  pictures = blobs;
  const blob = blobs[0];
  const image = at("picture");
  URL.revokeObjectURL(image.src);
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 128);
  image.onerror = () => { image.hidden = true; at("invitation").hidden = false; };
  image.src = URL.createObjectURL(blob);
  image.alt = blob.name ? `The chosen picture, ${blob.name}` : "The chosen picture";
  image.hidden = false;
  at("invitation").hidden = true;
  at("again").hidden = at("clear").hidden = false;
  const others = blobs.length > 1 ? ` and ${blobs.length - 1} more` : "";
  at("drop").setAttribute("aria-label", `Chosen: ${blob.name || "a picture"}${others}. Press to choose others`);
  await ask();
}

async function smaller(blob, exif) {
  let picture;
  try { picture = await open_picture(blob, exif); } catch { return blob; }
  const scale = WORST_SIDE / Math.max(picture.width, picture.height);
  if (scale >= 1) return blob;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  picture.paint(canvas.getContext("2d"), canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob((small) => done(small || blob), "image/png"));
}

async function ask() {
  const model = chosen();
  if (!model || !pictures.length) return;
  const number = ++asked;
  say("Looking ...");
  at("several").replaceChildren();
  try {
    if (pictures.length > 1) {
      await askMany(model, number);
      return;
    }
    const query = new URLSearchParams({ model: model.name, version: model.version, top_k: 5 });
    const started = performance.now();
    const body = await smaller(pictures[0], model.preprocessing.exif);
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

async function askMany(model, number) {
  at("labels").replaceChildren();
  at("time").textContent = "";
  const query = new URLSearchParams({ model: model.name, version: model.version, top_k: 1 });
  let doubtful = 0;
  for await (const { part, form } of requests(model)) {
    const rows = form ? await answersOf(part, form, query)
      : [{ error: `the picture is too large; expected at most ${mostBytes} bytes` }];
    if (number !== asked) return;
    doubtful += rows.filter((row) => row.error || row.doubtful).length;
    at("several").append(...rows.map((row, place) => lineOf(part[place], row)));
  }
  say(`${pictures.length} pictures` + (doubtful ? `, ${doubtful} doubtful or not read` : ""));
}

// The chosen pictures, as many in one form as the server takes. One that is too large alone is not sent: the server
// refuses it before it is read, and a browser that still writes may then see a broken connection, not the answer.
async function* requests(model) {
  let part = [], form = new FormData(), bytes = PART_BYTES;
  for (const blob of pictures) {
    const file = await smaller(blob, model.preprocessing.exif);
    const name = blob.name || "picture";
    const more = file.size + 3 * name.length + PART_BYTES;
    if (part.length && (bytes + more > mostBytes || part.length === Math.min(AT_ONCE, model.max_images))) {
      yield { part, form };
      [part, form, bytes] = [[], new FormData(), PART_BYTES];
    }
    if (file.size > mostBytes) { // by itself: what came before is on its way
      yield { part: [blob] };
      continue;
    }
    part.push(blob);
    form.append("file", file, name);
    bytes += more;
  }
  if (part.length) yield { part, form };
}

async function answersOf(part, form, query) {
  try {
    const result = await (await call(`v1/predict?${query}`, { method: "POST", body: form })).json();
    return result.results || [{ file: part[0].name, ...result }];
  } catch (error) {
    if (![400, 413].includes(error.status)) throw error;
    if (part.length === 1) return [{ error: error.message }];
  }
  const rows = []; // none can be read, or they are too many: each is asked for by itself, others still may be
  for (const [place, file] of form.getAll("file").entries()) {
    const one = new FormData();
    one.append("file", file, file.name);
    rows.push(...await answersOf([part[place]], one, query));
  }
  return rows;
}

function lineOf(blob, row) {
  const line = document.createElement("li");
  const image = document.createElement("img");
  const text = document.createElement("span");
  image.onload = () => URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  image.alt = "";
  text.textContent = `${blob.name || "picture"}: ${row.error || summary(row)}`;
  line.append(image, text);
  return line;
}

function summary(row) {
  const there = row.present || [row.predictions[0]]; // classes that do not exclude each other: each that is there
  const words = there.map((entry) => `${entry.label}, ${(100 * entry.probability).toFixed(1)} %`).join("; ")
    || "none of the classes";
  return row.doubtful ? `${words} - perhaps none of the classes` : words;
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
  say(summary(result));
  const times = result.milliseconds;
  at("time").textContent = `${times.run.toFixed(2)} ms in ${result.target} ${result.precision}, `
    + `${times.total.toFixed(2)} ms on the server, ${milliseconds.toFixed(0)} ms from here`;
}

async function copy(place) {
  try {
    await navigator.clipboard.writeText(place.textContent);
    say("Copied.");
  } catch { // not over plain HTTP: marked, to be copied by hand
    getSelection().selectAllChildren(place);
  }
}

async function startCamera() {
  stopCamera();  // pressed twice, the first one would go on without anybody to stop it
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
  canvas.toBlob((blob) => take([blob]), "image/png");
}

at("drop").addEventListener("click", () => (stream ? shoot() : at("file").click()));
at("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
at("group").addEventListener("change", chooseGroup);
at("model").addEventListener("change", showModel);
at("again").addEventListener("click", ask);
at("clear").addEventListener("click", clear);
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => copy(at(button.dataset.of)));
}
at("camera").addEventListener("click", startCamera);
at("shoot").addEventListener("click", shoot);
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  at("key-form").dataset.used = "yes";
  loadModels().then(ask);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); at("drop").classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); at("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files));
document.addEventListener("paste", (event) => take(event.clipboardData.files));
at("camera").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
loadModels();
