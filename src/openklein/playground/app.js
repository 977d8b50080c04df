// The page speaks the public API alone: POST /v1/generate, and /health/ready for the name of the model.
// Beside it lie templates: requests to start from, with the pictures that klein-mini made of them.

const ASKED_MODEL = "flux2-klein-4b";
const KEY_SLOT = "openklein-key";
const ASK_AGAIN_MS = 2000;

const byId = (id) => document.getElementById(id);
const [form, key, prompt, aspectRatio, images, thumbnails, uris, seed, send, cancel, stage, placeholder, picture,
  progress, message, elapsed, error, outcome, facts, download, edit, curl, copy, modelNote, templates,
  templateBox] = ["form", "key", "prompt",
  "aspect-ratio", "images", "thumbnails", "uris", "seed", "send", "cancel", "stage", "placeholder", "picture",
  "progress", "message", "elapsed", "error", "outcome", "facts", "download", "edit", "curl", "copy", "model-note",
  "templates", "template-box",
].map(byId);

let references = []; // the chosen files, in order
let request = null; // the AbortController of the picture that is being made
let made = null; // the last picture, as a file

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
    if (answer.model) return noteModel(answer.model);
    modelNote.textContent = answer.detail;
  } catch {
    modelNote.textContent = "The server does not answer.";
  }
  setTimeout(askModel, ASK_AGAIN_MS);
}

function chosenSize() {
  return aspectRatio.selectedOptions[0].textContent.match(/\d+/g).map(Number);
}

function shapeStage([width, height]) {
  stage.style.setProperty("--ratio", width / height);
}

function setReferences(files) {
  for (const image of thumbnails.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  references = files;
  thumbnails.replaceChildren(...files.map((file) => {
    const [item, image, remove] = ["li", "img", "button"].map((name) => document.createElement(name));
    image.src = URL.createObjectURL(file);
    image.alt = file.name;
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => {
      setReferences(references.filter((other) => other !== file));
      images.focus();
    });
    item.append(image, remove);
    return item;
  }));
}

const templateUri = (name) => `templates/${name}.webp`;

async function fillForm(template) {
  const files = await Promise.all(template.sources.map(async (name) => {
    const blob = await (await fetch(templateUri(name))).blob();
    return new File([blob], `${name}.webp`, { type: blob.type });
  }));
  setReferences(files);
  [prompt.value, aspectRatio.value, seed.value, uris.value] = [template.prompt, template.aspect_ratio, template.seed, ""];
  if (picture.hidden) shapeStage(chosenSize());
  send.focus();
}

async function showTemplates() {
  const list = await (await fetch("templates/templates.json")).json();
  templates.replaceChildren(...list.map((template) => {
    const [item, button, image] = ["li", "button", "img"].map((name) => document.createElement(name));
    image.src = templateUri(template.name);
    image.alt = button.title = template.prompt;
    button.type = "button";
    button.addEventListener("click", () => fillForm(template));
    button.append(image);
    item.append(button);
    return item;
  }));
  templateBox.hidden = false;
}

function readForm() {
  const lines = uris.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const fields = [["prompt", prompt.value], ["model", ASKED_MODEL], ["aspect_ratio", aspectRatio.value]];
  if (seed.value) fields.push(["seed", seed.value]);
  if (lines.length) fields.push(["image_uris", JSON.stringify(lines)]);
  return [...fields, ...references.map((file) => ["images", file])];
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curlLine(fields, usedSeed) {
  const parts = fields.filter(([name]) => name !== "seed").map(([name, value]) => value instanceof File
    ? `-F ${quote(`images=@"${value.name.replace(/["\\]/g, "\\$&")}"`)}`
    : `--form-string ${quote(`${name}=${value}`)}`);
  return [
    `curl ${new URL("v1/generate", location.href)}`,
    "-H 'Authorization: Bearer YOUR_API_KEY'",
    ...parts,
    `--form-string seed=${usedSeed}`,
    `-o ${made.name}`,
  ].join(" \\\n  ");
}

function showPicture(blob, headers, fields, size, took) {
  const fact = (name) => headers.get(`x-klein-${name}`);
  if (picture.src) URL.revokeObjectURL(picture.src);
  made = new File([blob], `openklein-${fact("seed")}.png`, { type: "image/png" });
  picture.src = download.href = URL.createObjectURL(made);
  picture.alt = fields[0][1]; // the prompt
  download.download = made.name;
  const rows = [["Model", fact("model")], ["Seed", fact("seed")], ["Workflow", fact("workflow")],
    ["Size", size.join(" × ")], ["Time", `${took} s`]];
  facts.replaceChildren(...rows.map(([term, value]) => {
    const [row, dt, dd] = ["div", "dt", "dd"].map((name) => document.createElement(name));
    dt.textContent = term;
    dd.textContent = value;
    row.append(dt, dd);
    return row;
  }));
  curl.textContent = curlLine(fields, fact("seed"));
  placeholder.hidden = true;
  picture.hidden = outcome.hidden = false;
  noteModel(fact("model"));
}

async function refusal(answer) {
  if (answer.status === 401) {
    key.setAttribute("aria-invalid", "true");
    key.focus();
  }
  const body = await answer.json().catch(() => ({})); // a proxy may answer in words of its own
  return new Error(body.detail ?? `The server answered with status ${answer.status}.`);
}

async function generate() {
  const started = performance.now();
  const seconds = (digits) => ((performance.now() - started) / 1000).toFixed(digits);
  const clock = setInterval(() => { elapsed.textContent = `${seconds(0)} s`; }, 1000);
  const [fields, size] = [readForm(), chosenSize()];
  const body = new FormData();
  for (const [name, value] of fields) body.append(name, value);
  try {
    const headers = { Authorization: `Bearer ${key.value.trim()}` };
    const answer = await fetch("v1/generate", { method: "POST", headers, body, signal: request.signal });
    if (!answer.ok) throw await refusal(answer);
    showPicture(await answer.blob(), answer.headers, fields, size, seconds(1));
  } finally {
    clearInterval(clock);
    elapsed.textContent = "";
  }
}

function setBusy(isBusy) {
  send.disabled = isBusy;
  cancel.hidden = progress.hidden = !isBusy;
  stage.setAttribute("aria-busy", isBusy);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (request) return;
  request = new AbortController();
  sessionStorage.setItem(KEY_SLOT, key.value);
  key.removeAttribute("aria-invalid");
  error.hidden = true;
  shapeStage(chosenSize());
  setBusy(true);
  message.textContent = "Making the picture …";
  stage.scrollIntoView({ block: "nearest" });
  try {
    await generate();
    message.textContent = "The picture is ready.";
  } catch (problem) {
    const isWished = problem.name === "AbortError";
    message.textContent = isWished ? "Cancelled." : "";
    error.textContent = problem instanceof TypeError ? "The server does not answer." : problem.message;
    error.hidden = isWished;
    if (!isWished) error.scrollIntoView({ block: "nearest" });
  } finally {
    setBusy(false);
    request = null;
  }
});

prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
cancel.addEventListener("click", () => {
  request.abort();
  send.focus();
});
images.addEventListener("change", () => {
  setReferences([...references, ...images.files]);
  images.value = "";
});
aspectRatio.addEventListener("change", () => { if (picture.hidden) shapeStage(chosenSize()); });
edit.addEventListener("click", () => {
  setReferences([made]);
  prompt.focus();
  prompt.select();
});
copy.addEventListener("click", async () => {
  await navigator.clipboard.writeText(curl.textContent);
  message.textContent = "Copied.";
});

copy.hidden = !navigator.clipboard; // which browsers lend to https and localhost alone
key.value = sessionStorage.getItem(KEY_SLOT) ?? "";
askModel();
showTemplates();
