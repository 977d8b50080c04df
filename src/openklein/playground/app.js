// The page speaks the public API alone: POST /v1/generate, and /health/ready for the name of the model.

const ASKED_MODEL = "flux2-klein-4b";
const KEY_SLOT = "openklein-key";

const byId = (id) => document.getElementById(id);
const [form, key, prompt, aspectRatio, images, thumbnails, uris, seed, send, cancel, message, picture, facts, download,
  modelNote] = ["form", "key", "prompt", "aspect-ratio", "images", "thumbnails", "uris", "seed", "send", "cancel",
  "message", "picture", "facts", "download", "model-note"].map(byId);

let request = null; // the AbortController of the picture that is being made

function noteModel(model) {
  const standsIn = model !== ASKED_MODEL;
  modelNote.textContent = standsIn
    ? `${model} stands in for ${ASKED_MODEL}, which is not installed on this server.`
    : `This server runs ${model}.`;
  modelNote.classList.toggle("banner", standsIn);
}

async function askModel() {
  try {
    const answer = await (await fetch("health/ready")).json();
    if (answer.model) noteModel(answer.model);
    else modelNote.textContent = answer.detail;
  } catch {
    modelNote.textContent = "The server does not answer.";
  }
}

function showThumbnails() {
  for (const image of thumbnails.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  thumbnails.replaceChildren(...[...images.files].map((file) => {
    const item = document.createElement("li");
    const image = document.createElement("img");
    image.src = URL.createObjectURL(file);
    image.alt = file.name;
    item.append(image);
    return item;
  }));
}

function readForm() {
  const body = new FormData();
  body.set("prompt", prompt.value);
  body.set("model", ASKED_MODEL);
  body.set("aspect_ratio", aspectRatio.value);
  if (seed.value) body.set("seed", seed.value);
  for (const file of images.files) body.append("images", file);
  const lines = uris.value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (lines.length) body.set("image_uris", JSON.stringify(lines));
  return body;
}

function showPicture(blob, headers) {
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = download.href = URL.createObjectURL(blob);
  picture.alt = prompt.value;
  facts.replaceChildren(...["model", "seed", "workflow"].flatMap((name) => {
    const term = document.createElement("dt");
    const value = document.createElement("dd");
    term.textContent = name;
    value.textContent = headers.get(`x-klein-${name}`);
    return [term, value];
  }));
  picture.hidden = facts.hidden = download.hidden = false;
  noteModel(headers.get("x-klein-model"));
}

async function generate() {
  const started = performance.now();
  const answer = await fetch("v1/generate", {
    method: "POST",
    headers: { Authorization: `Bearer ${key.value.trim()}` },
    body: readForm(),
    signal: request.signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  showPicture(await answer.blob(), answer.headers);
  return `Made in ${((performance.now() - started) / 1000).toFixed(1)} s.`;
}

function setBusy(isBusy) {
  send.disabled = isBusy;
  cancel.hidden = !isBusy;
  message.classList.remove("error");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY_SLOT, key.value);
  request = new AbortController();
  setBusy(true);
  message.textContent = "Making the picture …";
  try {
    const outcome = await generate();
    setBusy(false);
    message.textContent = outcome;
  } catch (error) {
    setBusy(false);
    message.classList.add("error");
    message.textContent = error.name === "AbortError" ? "Cancelled." : error.message;
  }
});

prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
cancel.addEventListener("click", () => request.abort());
images.addEventListener("change", showThumbnails);

key.value = sessionStorage.getItem(KEY_SLOT) ?? "";
askModel();
