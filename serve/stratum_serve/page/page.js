// Asks the server's own API for an image and shows the answer; nothing is loaded from anywhere else.
import { drawInstances, drawPatches, drawSizes, csvOf } from "./draw.js";

const at = (id) => document.getElementById(id);
let models = [];
let image = null;
let busy = false;
let urls = [];

const headers = () => (at("key").value ? { Authorization: `Bearer ${at("key").value}` } : {});

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...(options.headers ?? {}) } });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Error(problem.detail ?? `The server answered ${answer.status}.`);
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

async function loadModels() {
  try {
    models = (await (await ask("v1/models")).json()).models;
  } catch (error) {
    say(error.message, true);
    return;
  }
  at("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  showModel();
}

const chosenModel = () => models.find((model) => model.name === at("model").value);

function showModel() {
  const model = chosenModel();
  if (!model) return;
  at("about").textContent = model.note || `${model.version ? `Version ${model.version} finds` : "Finds"} ${model.classes.join(", ")}.`;
  at("for-score").hidden = model.task !== "instance";
  at("for-refine").hidden = !model.pipeline;
}

function take(file) {
  image = file;
  at("chosen").textContent = file ? file.name : "Drop an image here, or choose one";
  if (file) at("s3").value = "";
}

function options() {
  const values = { mm_per_px: at("scale").value };
  return chosenModel().task === "instance" ? { ...values, score: at("score").value } : values;
}

const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "")).toString();

function body() {
  const place = at("s3").value.trim();
  if (place) return { body: JSON.stringify({ image: place }), headers: { "Content-Type": "application/json" } };
  return { body: image, headers: { "Content-Type": "application/octet-stream" } };
}

async function segment(event) {
  event.preventDefault();
  if (busy) return;
  if (!image && !at("s3").value.trim()) return say("Choose an image first.", true);
  if (!chosenModel()) return say("There is no model to ask.", true);
  work(true);
  say("Working…");
  try {
    await show();
  } catch (error) {
    say(error.message, true);
  } finally {
    work(false);
  }
}

// The button keeps the focus of whoever has pressed it, which one that is disabled does not.
function work(begins) {
  busy = begins;
  at("go").setAttribute("aria-disabled", String(begins));
}

// The first answer says which version gives it; what follows, one after the other, is asked of that one, under the same request id.
async function show() {
  const model = chosenModel();
  const which = at("which").value.trim();
  const refined = model.pipeline && at("refine").checked;
  const [sent, chosen] = [body(), refined ? { ...options(), patches: at("patches").value } : options()];
  const reference = (version) => encodeURIComponent(model.name + (version ? `@${version}` : "")).replace("%40", "@");
  const post = (version, action, more, id) => {
    const headers = { ...sent.headers, ...(id ? { "X-Request-Id": id } : {}) };
    const path = `v1/${refined ? "refine" : "models"}/${reference(version)}/${action}`;
    return ask(`${path}?${query({ ...chosen, ...more })}`, { method: "POST", body: sent.body, headers });
  };
  const first = await post(which, "segment", { geometry: "polygons" });
  const found = await first.json();
  const [version, id] = [found.model.version || which, found.request_id];
  const overlay = await (await post(version, "segment", { format: "overlay" }, id)).blob();
  const mask = await (await post(version, "segment", { format: "png" }, id)).blob();
  const measured = await (await post(version, "measure", {}, id)).json();
  urls.forEach((url) => URL.revokeObjectURL(url));
  const link = (blob) => (urls.push(URL.createObjectURL(blob)), urls.at(-1));
  urls = [];
  at("picture").src = link(overlay);
  at("get-mask").href = link(mask);
  at("get-json").href = link(new Blob([JSON.stringify({ ...found, measurements: measured }, null, 1)], { type: "application/json" }));
  at("get-csv").href = link(new Blob([csvOf(measured)], { type: "text/csv" }));
  drawAll(found, measured);
  at("results").hidden = false;
  const count = found.instances ? `${found.instances.length} instances` : `${found.classes.length} classes`;
  say(`${count} in ${found.width} × ${found.height} pixels, by ${found.model.name}${found.model.version ? ` version ${found.model.version}` : ""}.`);
}

function drawAll(found, measured) {
  at("shapes").replaceChildren();
  at("shapes").setAttribute("viewBox", `0 0 ${found.width} ${found.height}`);
  const particles = new Map((measured.particles ?? []).map((particle) => [particle.index + 1, particle]));
  drawInstances(at("shapes"), found.instances ?? [], (instance) => {
    const size = particles.get(instance.id);
    const across = size ? `, ${(size.equivalent_diameter_mm ?? size.equivalent_diameter_px).toFixed(1)} ${size.equivalent_diameter_mm ? "mm" : "px"} across` : "";
    at("hover").textContent = `${instance.label} ${instance.id}: score ${instance.score.toFixed(2)}${across}`;
  });
  drawPatches(at("shapes"), found.refined);
  at("hover").textContent = found.refined ? `${found.refined.patches.length} patches were refined.` : "";
  at("sizes").hidden = !measured.histogram;
  if (measured.histogram) drawSizes(at("plot"), at("levels"), measured);
  at("slag").hidden = !(measured.slag || measured.note);
  const band = measured.slag;
  at("band").textContent = band
    ? `The band is ${(band.height_mm ?? band.height_px).toFixed(1)} ± ${(band.uncertainty_mm ?? band.uncertainty_px).toFixed(1)} ${band.height_mm ? "mm" : "px"} high.`
    : measured.note;
  at("classes").tBodies[0].replaceChildren(
    ...found.classes.map((one) => {
      const row = document.createElement("tr");
      for (const text of [one.label, String(one.pixels), `${(100 * one.fraction).toFixed(2)} %`]) row.insertCell().textContent = text;
      return row;
    }),
  );
}

at("ask").addEventListener("submit", segment);
at("file").addEventListener("change", (event) => take(event.target.files[0] ?? null));
at("model").addEventListener("change", showModel);
at("key").addEventListener("change", loadModels);
for (const kind of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}
loadModels();
