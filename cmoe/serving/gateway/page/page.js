"use strict";
// Whatever the service says is put into the page as textContent: none of it is ever markup.
const $ = (id) => document.getElementById(id);
const copy = (template) => $(template).content.firstElementChild.cloneNode(true);
const percent = (part) => `${(100 * part).toFixed(1)}%`;
const KINDS = ["image/jpeg", "image/png", "image/webp"];
const SIDE = 2048, BYTES = 6e6; // larger pictures are made smaller before they are sent
const TEXT_ALONE = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'%3E%3Cpath d='M1 2h7M1 4h7M1 6h4' stroke='gray'/%3E%3C/svg%3E";

let key = ""; // in this variable alone, so that it is gone with the page
let picture = ""; // a data URL
let reading = Promise.resolve(); // until the file that was chosen has become the picture
let turns = []; // of the conversation, each answered: question, answer, by whom
let asking = $("question"); // the field that was asked from last
let running = null; // the AbortController of the question that is being answered
let answering = ""; // the task that answers
let version = ""; // of the store that answered last

const sentence = (text) => text.replace(/[^.!?]$/, "$&."); // the service's messages have no point
class Complaint extends Error {} // its message is for people
const inWords = (error) => (error instanceof Complaint ? error.message : "The connection broke off. Try again.");

function complain(message) {
  $("error").textContent = message;
  if (message) $("error").scrollIntoView({ block: "nearest" });
}

// The picture

function show(url, name) {
  beginAnew(); // what was said is about another picture
  picture = url;
  $("file").value = ""; // the same file may be chosen again
  $("choose").hidden = Boolean(url);
  $("preview").hidden = !url;
  $("named").textContent = name;
  if (url) $("shown").src = url;
}

const PART = "\\s*([01]?\\.\\d+|[01])\\s*";
const BOX = new RegExp(`(?:^|\\[)${[PART, PART, PART, PART].join(",")}(?:\\]|\\.?$)`);

/** Left, top, right and bottom in parts of the picture, where an answer has them. */
function boxIn(text) {
  const [left, top, right, bottom] = (BOX.exec(text.trim()) ?? []).slice(1).map(Number);
  return left < right && right <= 1 && top < bottom && bottom <= 1 ? { left, top, right, bottom } : null;
}

/** Draw a box on the picture. The drawing is as large as the picture and is fitted as the picture is. */
function draw({ left, top, right, bottom }) {
  const { naturalWidth: width, naturalHeight: height } = $("shown");
  const drawing = copy("drawn");
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.setAttribute("aria-label", "The box of the answer");
  for (const line of drawing.children) {
    const place = { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height };
    for (const [name, value] of Object.entries(place)) line.setAttribute(name, value);
  }
  $("view").append(drawing);
  $("preview").scrollIntoView({ block: "nearest" });
}

/** A file as a data URL: itself where the service takes it, else drawn anew. */
async function dataURL(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const turned = /exif/i.test(await file.text()); // maybe: the service doesn't turn it, a bitmap is upright
  if (scale === 1 && KINDS.includes(file.type) && file.size <= BYTES && !turned) {
    const reader = new FileReader();
    reader.readAsDataURL(file);
    await new Promise((resolve) => reader.addEventListener("loadend", resolve));
    return reader.result;
  }
  const [width, height] = [bitmap.width, bitmap.height].map((n) => Math.max(1, Math.round(n * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

/** One file after the other, so that the one that was chosen last stays. */
function pick(file) {
  if (!file) return;
  complain("");
  const unread = () => complain(`${file.name} isn't a picture that can be read here; JPEG, PNG and WebP are.`);
  reading = reading.then(() => dataURL(file)).then((url) => show(url, file.name), unread);
}

// Speaking to the service

/** Ask the service for something; what it refuses becomes a complaint. */
async function call(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const request = { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) };
  const response = await fetch(path, request).catch(() => {
    throw new Complaint("The service can't be reached. Is it running, and is this device online?");
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  // What stands between page and service may answer without OpenAI's error object.
  const said = await response.json().catch(() => null);
  let message = sentence(said?.error?.message || `The service answered with status ${response.status}`);
  if (response.status === 401) {
    $("keys").hidden = false;
    if (running) $("key").focus(); // who only opened the page is left in peace
  }
  if (response.status === 429) message = `The service is busy: ${message}`;
  const wait = Number(response.headers.get("Retry-After")); // no number where it is a date
  if (wait) message += ` Try again in ${wait} second${wait === 1 ? "" : "s"}.`;
  return new Complaint(message);
}

/** The data of server-sent events, each of which is one line here. A line, and a character of it, may
 * lie in several parts of the body. */
async function* events(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  for (let rest = "", done = false, value; !done; ) {
    ({ done, value } = await reader.read());
    const lines = (rest + decoder.decode(value, { stream: !done })).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trimStart();
  }
}

// Asking

/** Ask what a field says: first, or further about the same picture. */
async function ask(field = $("question")) {
  await reading;
  const text = field.value.trim();
  if (!text) {
    complain("Nothing was sent: write a question first.");
    return field.focus();
  }
  asking = field;
  if (field === $("question")) beginAnew();
  running?.abort(); // a new question takes the place of the last
  const mine = (running = new AbortController());
  const messages = conversation(text);
  complain("");
  clear();
  $("turns").replaceChildren(...turns.map(({ question, answer, by }) => {
    const item = copy("earlier");
    [question, by, answer].forEach((part, n) => (item.children[n].textContent = part));
    return item;
  }));
  $("asked").textContent = text;
  $("note").textContent = "Waiting for the service ...";
  if ($("model").value === "cmoe") $("why").textContent = "Locating ...";
  $("answer").setAttribute("aria-busy", "true"); // screen readers read it once, when it is whole
  $("stop").hidden = false;
  $("turn").scrollIntoView({ block: "nearest" });
  const located = locate(messages, mine.signal);
  try {
    await answer(messages, mine.signal);
    turns.push({ question: text, answer: $("answer").textContent, by: $("task").textContent });
    $("further").hidden = false;
    if ($("more").value.trim() === text) $("more").value = "";
    await showExperts(messages, mine.signal);
  } catch (error) {
    if (running !== mine) return; // the page is a newer question's now
    if (!$("task").textContent) $("why").textContent = "";
    $("note").textContent = mine.signal.aborted ? "Stopped." : "";
    if (!mine.signal.aborted) complain(inWords(error));
  }
  await located;
  if (running === mine) settle();
}

/** The messages that ask a question behind what was said before. */
function conversation(text) {
  const said = turns.flatMap(({ question, answer }) => [
    { role: "user", content: [{ type: "text", text: question }] },
    { role: "assistant", content: answer },
  ]);
  const messages = [...said, { role: "user", content: [{ type: "text", text }] }];
  if (picture) messages[0].content.unshift({ type: "image_url", image_url: { url: picture } });
  return messages;
}

/** Nothing is being asked any more. */
function settle() {
  running = null;
  $("answer").setAttribute("aria-busy", "false");
  if (document.activeElement === $("stop")) ($("further").hidden ? $("ask") : $("more")).focus();
  $("stop").hidden = true;
}

function clear() {
  for (const id of ["asked", "answer", "note", "task", "why", "tasks", "missing", "experts"]) $(id).replaceChildren();
  $("located").hidden = $("worked").hidden = true;
  answering = "";
  $("box")?.remove();
}

function beginAnew() {
  running?.abort();
  settle();
  turns = [];
  asking = $("question");
  clear();
  $("turns").replaceChildren();
  $("further").hidden = true;
  $("note").textContent = "The answer appears here as it is written.";
}

/** Show an answer as it comes. */
async function answer(messages, signal) {
  const response = await call("v1/chat/completions", { model: $("model").value, messages, stream: true }, signal);
  let finish = null;
  for await (const data of events(response.body)) {
    signal.throwIfAborted();
    if (data === "[DONE]") break;
    const { error, cmoe, choices } = JSON.parse(data);
    if (error) throw new Complaint(sentence(error.message)); // it failed behind its first words
    if (cmoe && !$("task").textContent) showTask(cmoe);
    if (choices[0]?.delta.content) {
      $("note").textContent = "";
      $("answer").append(choices[0].delta.content);
    }
    finish = choices[0]?.finish_reason ?? finish;
  }
  if (!finish) throw new Complaint("The answer broke off before its end. Try again.");
  if (finish === "length") $("note").textContent = "Cut off here: this is as long as an answer may be.";
  else if (!$("answer").textContent) $("note").textContent = "The answer is empty.";
  const box = picture && boxIn($("answer").textContent);
  if (box) draw(box);
  if (box) $("note").textContent = "It is drawn on the picture.";
}

function showTask({ task, located, unknown, nearest, score, share, store_version }) {
  const base = "The base model alone answers, with nothing of what was learned later.";
  answering = task;
  $("task").textContent = task ? (located ? `${task}, ${percent(share)}` : task) : "No task claims this question";
  $("why").textContent = !task ? base : located ? "Located from your question." : "It answers because you named it.";
  $("compared").textContent = unknown ? "How the tasks compare, though none is near enough" : "How the tasks compare";
  const near = score === undefined ? "" : ` Score of the nearest task, ${nearest}: ${score.toFixed(2)}; smaller is nearer.`;
  $("store").textContent = `Store ${store_version}.${near}`;
  $("located").hidden = false;
  if (version && version !== store_version) loadModels(); // a task was added meanwhile
  version = store_version;
}

/** Show how the tasks compare. It comes beside the answer, and an answer is good without it. */
async function locate(messages, signal) {
  try {
    const found = await (await call("v1/locate", { messages }, signal)).json();
    signal.throwIfAborted();
    showShares("tasks", found);
    if (!found.tasks.length) $("missing").textContent = "The store has no task yet.";
  } catch (error) {
    if (!signal.aborted) $("missing").textContent = inWords(error);
  }
}

/** Show whose experts worked on a question that a task has answered; a service may not tell. */
async function showExperts(messages, signal) {
  if (!answering) return;
  const found = await call("v1/experts", { model: `cmoe:${answering}`, messages }, signal).then((r) => r.json()).catch(() => null);
  if (!found || signal.aborted) return;
  found.tasks = found.tasks.filter(({ share }) => share >= 5e-4); // what isn't 0.0%
  showShares("experts", found);
  $("worked").hidden = !$("experts").childElementCount;
}

/** Shares of tasks as bars, the largest first. */
function showShares(list, { task: own, tasks }) {
  $(list).replaceChildren(...tasks.sort((a, b) => b.share - a.share).map(({ task, share }) => {
    const row = copy("row"), [name, value, bar] = row.children;
    name.textContent = task;
    value.textContent = bar.firstChild.style.width = percent(share);
    row.classList.toggle("claims", task === own);
    return row;
  }));
}

// What there is to choose from

async function loadModels() {
  try {
    const { data } = await (await call("v1/models")).json();
    const chosen = $("model").value;
    $("model").replaceChildren(...data.map(({ id }) => {
      const name = id.includes(":") ? `Name it: ${id.slice(id.indexOf(":") + 1)}` : "Locate the task";
      return new Option(name, id, false, id === chosen);
    }));
  } catch (error) {
    complain(inWords(error));
  }
}

async function loadExamples() {
  const found = await call("examples").then((response) => response.json()).catch(() => []);
  $("examples").hidden = !found.length;
  $("examples").querySelector("ol").replaceChildren(...found.map(({ task, text, picture }) => {
    const item = copy("example"), button = item.firstChild;
    button.title = text;
    button.setAttribute("aria-label", `Ask the example of ${task}: ${text}`);
    button.firstChild.src = picture || TEXT_ALONE;
    button.lastChild.textContent = task;
    button.addEventListener("click", () => {
      reading = reading.then(() => show(picture, `Example of ${task}`));
      $("question").value = text;
      ask();
    });
    return item;
  }));
}

$("shown").addEventListener("load", ({ target }) => {
  target.classList.toggle("tiny", target.naturalWidth < 128); // rather in squares than in a blur
  $("named").textContent += `, ${target.naturalWidth} × ${target.naturalHeight}`;
});
$("file").addEventListener("change", ({ target }) => pick(target.files[0]));
$("remove").addEventListener("click", () => { show("", ""); $("file").focus(); });
$("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("further").addEventListener("submit", (event) => { event.preventDefault(); ask($("more")); });
$("anew").addEventListener("click", () => { beginAnew(); $("more").value = ""; $("question").focus(); });
$("stop").addEventListener("click", () => running?.abort());
$("keys").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  $("keys").hidden = true; // it comes back where the key is refused
  complain("");
  loadModels();
  if (asking.value.trim()) ask(asking);
});
addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ask(document.activeElement === $("more") ? $("more") : undefined);
  }
});
addEventListener("paste", ({ clipboardData }) => pick(clipboardData.files[0]));
// A file that misses its place would open instead of this page: the whole page takes it.
const files = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
const mark = (over) => document.body.classList.toggle("over", over);
addEventListener("dragover", (event) => { if (files(event)) { event.preventDefault(); mark(true); } });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) mark(false); });
addEventListener("drop", (event) => {
  mark(false);
  if (files(event)) { event.preventDefault(); pick(event.dataTransfer.files[0]); }
});
beginAnew();
loadModels();
loadExamples();
