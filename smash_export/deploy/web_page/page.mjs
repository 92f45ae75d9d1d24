// The page: a picture becomes bytes, the network answers probabilities, the best labels are shown.
import { decode } from "./picture.mjs";
import * as ort from "./ort.wasm.min.mjs";

const SHOWN = 5;
const element = (id) => document.getElementById(id);
const say = (text) => { element("status").textContent = text; };

ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;

async function start() {
  const model = await (await fetch("model.json")).json();
  element("about").textContent =
    `${model.labels.length} classes; pictures are resized to ${model.preprocessing.width} x ${model.preprocessing.height} pixels.`;
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  const input = element("file");
  input.disabled = false;
  say("ready");
  input.addEventListener("change", async () => {
    input.disabled = true;
    for (const file of input.files) await answer(session, model, file);
    input.disabled = false;
    input.value = "";
    say("ready");
  });
}

async function answer(session, model, file) {
  say(`classifying ${file.name}`);
  const item = document.createElement("li");
  const picture = item.appendChild(document.createElement("img"));
  picture.alt = file.name;
  picture.src = URL.createObjectURL(file);
  picture.onload = () => URL.revokeObjectURL(picture.src);
  try {
    show(item, model, await classify(session, model.preprocessing, file));
  } catch (error) {
    const text = item.appendChild(document.createElement("p"));
    text.textContent = `${file.name} cannot be classified: ${error.message}`;
  }
  element("results").prepend(item);
}

async function classify(session, preprocessing, file) {
  const bytes = await decode(file, preprocessing);
  const shape = [1, preprocessing.height, preprocessing.width, preprocessing.channels];
  const { probabilities } = await session.run({ image: new ort.Tensor("uint8", bytes, shape) });
  return Array.from(probabilities.data);
}

// Of classes that do not exclude each other every one that is there is marked, of others the best.
function show(item, model, probabilities) {
  const best = Math.max(...probabilities);
  const from = model.present_from ?? best;
  item.append(list(model.labels, probabilities, from));
  const doubtful = model.doubt_below !== null && best < model.doubt_below;
  if (best >= from && !doubtful) return;
  item.appendChild(document.createElement("p")).textContent =
    doubtful ? "perhaps none of the classes" : "none of the classes";
}

function list(labels, probabilities, from) {
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  const answers = document.createElement("ol");
  for (const index of order.filter((index, place) => place < SHOWN || probabilities[index] >= from)) {
    const row = answers.appendChild(document.createElement("li"));
    row.dataset.label = labels[index];
    row.dataset.probability = probabilities[index];
    row.classList.toggle("there", probabilities[index] >= from);
    row.append(labels[index]);
    row.appendChild(document.createElement("span")).textContent = `${(100 * probabilities[index]).toFixed(1)} %`;
    const bar = row.appendChild(document.createElement("meter"));
    bar.value = probabilities[index];
    bar.setAttribute("aria-hidden", "true");
  }
  return answers;
}

start().catch((error) => say(`The network cannot be loaded: ${error.message}. Open this page through a web server, not as a file.`));
