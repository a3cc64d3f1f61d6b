"use strict";
// What models wrote becomes text nodes and, for formulas, elements of MathML that page.py has
// chosen; nothing here makes HTML or code of a string.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 100; // questions that are listed at once
const FLAGS = ["wrong", "flipped", "tied", "undecided"]; // in the order of a visit's flags
// As ttrl/report/page/formulas.py has it.
const DELIMITED = /\$\$([^$]{1,500}?)\$\$|\\\[([\s\S]{1,500}?)\\\]|\\\(([\s\S]{1,500}?)\\\)|\$(?!\s)([^$\n]{1,500}?)(?<!\s)\$(?!\d)/g;
// Controls, what turns or hides text, and halves of characters.
const CODES = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

// --- The state, kept in the address: it survives a reload

const state = new URLSearchParams(location.hash.slice(1));

function remember(name, value) {
  if (value === "" || value === null || value === undefined) state.delete(name);
  else state.set(name, value);
  history.replaceState(null, "", `#${state}`);
}

// --- Elements

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function plain(text) {
  const parts = document.createDocumentFragment();
  let done = 0;
  for (const found of text.matchAll(CODES)) {
    const code = found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.append(text.slice(done, found.index), make("span", { class: "code" }, `U+${code}`));
    done = found.index + 1;
  }
  parts.append(text.slice(done));
  return parts;
}

function mathElement([tag, attributes, ...children]) {
  const element = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  for (const child of children) element.append(typeof child === "string" ? child : mathElement(child));
  return element;
}

function rich(text, formulas) {
  const parts = document.createDocumentFragment();
  let done = 0;
  for (const found of text.matchAll(DELIMITED)) {
    const latex = found[1] ?? found[2] ?? found[3] ?? found[4];
    if (!Object.hasOwn(formulas, latex)) continue;
    parts.append(plain(text.slice(done, found.index)), mathElement(formulas[latex]));
    done = found.index + found[0].length;
  }
  parts.append(plain(text.slice(done)));
  return parts;
}

function quoted(answer, formulas) {
  if (answer === null) return make("i", {}, "no answer");
  if (Object.hasOwn(formulas, answer)) return make("span", { class: "quoted" }, mathElement(formulas[answer]));
  return make("span", { class: "quoted", dir: "auto" }, rich(answer, formulas));
}
const said = (text, formulas) => make("div", { class: "said", dir: "auto", tabindex: "0", role: "group", "aria-label": "Text" }, rich(text, formulas));
const badge = (kind, text = kind) => make("span", { class: `badge ${kind}` }, text);
const percent = (share) => `${(100 * share).toFixed(0)} %`;

// --- Curves: a step, and the values at it

function shown(value, unit) {
  if (unit === "%") return `${(100 * value).toFixed(1)} %`;
  return `${Number(value.toPrecision(4))} ${unit}`.trim();
}

function nearest(points, step) {
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= step) low = middle;
    else high = middle;
  }
  return Math.abs(points[high][0] - step) < Math.abs(points[low][0] - step) ? points[high] : points[low];
}

class Plot {
  constructor(element) {
    this.element = element;
    this.figure = data.figures[Number(element.dataset.figure)];
    this.frame = element.querySelector(".role-frame > g > path.background");
    const box = this.frame.getBBox();
    this.width = box.width;
    this.line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of Object.entries({ class: "at", y1: 0, y2: box.height })) this.line.setAttribute(name, value);
    this.frame.parentNode.append(this.line);
    this.reading = element.querySelector(".reading");
    this.reading.hidden = false;
    this.several = new Set(this.figure.series.map((series) => series.run)).size > 1;
    element.querySelector("svg").addEventListener("pointermove", (event) => {
      const [first, last] = this.figure.domain;
      const frame = this.frame.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width));
      setStep(Math.round(first + share * (last - first)));
    });
    const details = element.querySelector("details");
    details.addEventListener("toggle", () => this.numbers(details), { once: true });
  }

  name(series) {
    return this.several ? `${series.run}, ${series.name}` : series.name;
  }

  at(step) {
    const [first, last] = this.figure.domain;
    const x = (Math.min(last, Math.max(first, step)) - first) / (last - first) * this.width;
    this.line.setAttribute("x1", x);
    this.line.setAttribute("x2", x);
    const values = this.figure.series.map((series) => {
      const [at, value] = nearest(series.points, step);
      const where = Math.abs(at - step) < 1 ? "" : ` (step ${Math.round(at)})`;
      return [`${this.name(series)} `, make("b", {}, shown(value, this.figure.unit)), where];
    });
    this.reading.replaceChildren(...values.flatMap((parts, i) => (i ? [" · ", ...parts] : parts)));
  }

  numbers(details) {
    const { series, title, key, unit } = this.figure;
    const rows = new Map();
    series.forEach((one, column) => {
      for (const [step, value] of one.points) {
        if (!rows.has(step)) rows.set(step, Array(series.length).fill(""));
        rows.get(step)[column] = shown(value, unit);
      }
    });
    const steps = [...rows.keys()].sort((a, b) => a - b);
    const body = steps.map((step) =>
      make("tr", {}, make("th", { scope: "row" }, `${step}`), ...rows.get(step).map((value) => make("td", {}, value))));
    const head = ["step", ...series.map((one) => this.name(one))].map((name) => make("th", { scope: "col" }, name));
    const table = make("table", {}, make("caption", {}, title), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
    const save = (kind) => {
      const button = make("button", { type: "button" }, `Save as ${kind}`, make("span", { class: "hidden" }, `: ${title}`));
      button.addEventListener("click", () => this.save(key, kind));
      return button;
    };
    details.append(make("p", {}, save("SVG"), " ", save("PNG")),
      make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Numbers of ${title}` }, table));
  }

  async save(key, kind) {
    const copy = this.element.querySelector("svg").cloneNode(true);
    copy.querySelector(".at").remove();
    let file = new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
    if (kind === "PNG") file = await painted(file, copy);
    const link = make("a", { href: URL.createObjectURL(file), download: `${key}.${kind.toLowerCase()}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

async function painted(file, svg) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  await image.decode();
  URL.revokeObjectURL(image.src);
  const canvas = make("canvas", { width: 2 * svg.getAttribute("width"), height: 2 * svg.getAttribute("height") });
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

let plots = [];

function setStep(step) {
  byId("step").value = step;
  byId("step-shown").textContent = `step ${byId("step").value}`;
  byId("step").setAttribute("aria-valuetext", `step ${byId("step").value}`);
  for (const plot of plots) plot.at(step);
}

function startCurves() {
  plots = [...document.querySelectorAll(".figure")].map((element) => new Plot(element));
  if (!plots.length) return;
  const first = Math.min(...data.figures.map((figure) => figure.domain[0]));
  const last = Math.max(...data.figures.map((figure) => figure.domain[1]));
  const slider = byId("step");
  slider.min = first;
  slider.max = last;
  slider.addEventListener("input", () => setStep(Number(slider.value)));
  slider.addEventListener("change", () => remember("at", slider.value === `${last}` ? "" : slider.value));
  setStep(state.has("at") ? Number(state.get("at")) : last);
}

// --- Questions

async function unpacked(id) {
  const bytes = Uint8Array.from(atob(byId(`packed-${id}`).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const loaded = new Map(); // packed things that were asked for

function load(id) {
  if (!loaded.has(id)) loaded.set(id, unpacked(id));
  return loaded.get(id);
}

let run = 0; // the run whose questions are listed
let listed = { questions: [], formulas: {} };
let found = [];

function visit([step, label, [votes, abstained, ratio], flags, clusters]) {
  return { step, label, votes, abstained, ratio, flags: new Set(FLAGS.filter((_, i) => flags[i])), known: flags[0] !== null, clusters };
}

async function showRun() {
  const { questions, formulas } = await load(`${run}-questions`);
  listed = {
    formulas,
    questions: questions.map((question) => {
      const visits = question.visits.map(visit);
      const answers = visits.flatMap((v) => [v.label ?? "", ...v.clusters.map(([name]) => name)]);
      const words = [question.id, question.prompt, question.reference ?? "", ...new Set(answers)];
      return { ...question, visits, last: visits.at(-1), words: words.join("\n").toLowerCase() };
    }),
  };
  listed.questions.sort((a, b) => a.id.localeCompare(b.id, "en", { numeric: true }));
  filter();
  const chosen = listed.questions.find((question) => question.id === state.get("question"));
  if (chosen) await showQuestion(chosen, false);
  else byId("detail").hidden = true;
}

const ORDERS = {
  name: () => 0,
  ratio: (a, b) => (a.last?.ratio ?? 2) - (b.last?.ratio ?? 2),
  convinced: (a, b) => (b.last?.ratio ?? -1) - (a.last?.ratio ?? -1),
  flips: (a, b) => flips(b) - flips(a),
};
const flips = (question) => question.visits.filter((v) => v.flags.has("flipped")).length;

function filter() {
  const words = byId("search").value.toLowerCase();
  const wanted = FLAGS.filter((flag) => document.querySelector(`[name=${flag}]`).checked);
  const any = byId("when").value === "any";
  found = listed.questions.filter((question) => {
    if (!question.words.includes(words)) return false;
    if (!wanted.length) return true;
    const seen = any ? question.visits : question.visits.slice(-1);
    return seen.some((v) => wanted.every((flag) => v.flags.has(flag)));
  });
  found.sort(ORDERS[byId("sort").value]);
  byId("found").textContent = `${found.length} of ${listed.questions.length} questions`;
  byId("list").replaceChildren();
  showMore();
}

function showMore() {
  const from = byId("list").children.length;
  byId("list").append(...found.slice(from, from + PAGE).map(listItem));
  byId("more").hidden = byId("list").children.length >= found.length;
}

function badges(v) {
  const shownFlags = [...v.flags].map((flag) => badge(flag));
  return v.known && !v.flags.has("wrong") ? [badge("right"), ...shownFlags] : shownFlags;
}

function listItem(question) {
  const current = question.id === state.get("question");
  const button = make("button", { type: "button", "aria-current": current ? "true" : null },
    make("span", { class: "id" }, plain(question.id)));
  if (question.last) {
    button.append(" ", ...badges(question.last));
    button.append(make("span", { class: "snippet" }, plain(question.prompt.trim().slice(-120).replaceAll("\n", " "))),
      make("span", { class: "snippet" }, "label ", quoted(question.last.label, listed.formulas),
        `, ${percent(question.last.ratio)} of the votes in step ${question.last.step}`));
  } else button.append(make("span", { class: "snippet" }, "votes not counted yet"));
  button.addEventListener("click", () => {
    remember("question", question.id);
    remember("answers", "");
    for (const other of byId("list").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
    showQuestion(question, true);
  });
  return make("li", {}, button);
}

function bar(v) {
  const part = (count, kind) => {
    const piece = make("span", { class: kind });
    piece.style.width = `${100 * count / v.votes}%`;
    return piece;
  };
  return make("div", { class: "bar", "aria-hidden": "true" },
    ...v.clusters.map(([, count, won]) => part(count, won ? "won" : "")));
}

function visitRow(question, v) {
  const open = make("button", { type: "button" }, `${v.step}`, make("span", { class: "hidden" }, ": show its answers"));
  open.addEventListener("click", () => showAnswers(question, v, true));
  const best = v.clusters.slice(0, 2).map(([name, count]) => [quoted(name, listed.formulas), ` × ${count}`]);
  const rest = v.votes - v.abstained - v.clusters.slice(0, 2).reduce((sum, [, count]) => sum + count, 0);
  const counts = best.flatMap((parts, i) => (i ? [", ", ...parts] : parts));
  if (rest > 0) counts.push(`, others × ${rest}`);
  if (v.abstained) counts.push(`${counts.length ? ", " : ""}abstained × ${v.abstained}`);
  return make("tr", {}, make("th", { scope: "row" }, open), make("td", {}, quoted(v.label, listed.formulas)),
    make("td", {}, percent(v.ratio)), make("td", {}, ...counts, bar(v)), make("td", {}, ...badges(v)));
}

async function showQuestion(question, move) {
  const detail = byId("detail");
  const head = ["step", "label", "votes for it", "votes by answer", "the label is"].map((name) => make("th", { scope: "col" }, name));
  const rows = [...question.visits].reverse().map((v) => visitRow(question, v));
  const parts = [make("h3", {}, plain(question.id)), said(question.prompt, listed.formulas)];
  if (question.reference !== null) parts.push(make("p", {}, "Reference answer, never trained on: ", quoted(question.reference, listed.formulas)));
  parts.push(make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Votes over the steps" },
    make("table", { class: "visits" }, make("caption", {}, "Votes over the steps, newest first"),
      make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows))),
    make("div", { id: "answers" }));
  detail.replaceChildren(...parts);
  detail.hidden = false;
  if (move) {
    detail.focus({ preventScroll: true });
    detail.scrollIntoView({ block: "nearest" });
  }
  const step = Number(state.get("answers"));
  const v = question.visits.find((one) => one.step === step) ?? question.visits.at(-1);
  if (v) await showAnswers(question, v, false);
}

async function showAnswers(question, v, move) {
  const place = byId("answers");
  const title = make("h4", { tabindex: "-1" }, `Answers in step ${v.step}`);
  if (move) remember("answers", v.step);
  if (!data.runs[run].texts.includes(v.step)) {
    const file = `rollouts/step_${String(v.step).padStart(5, "0")}.jsonl`;
    place.replaceChildren(title, make("p", {}, `The texts of this step are not in this page; they are in ${file} of the run's folder.`));
  } else {
    const { answers, formulas } = await load(`${run}-${v.step}`);
    const lines = (answers[question.id] ?? []).map((line, i) => answerItem(line, i + 1, formulas));
    place.replaceChildren(title, clusterButtons(lines, formulas), ...lines.map((line) => line.element));
  }
  if (move) title.focus();
}

function answerItem([text, answer, tokens, truncated, reward, greedy], number, formulas) {
  const element = make("details", { class: "answer" });
  const facts = [`${tokens} tokens`, ...(truncated ? ["cut off"] : []), ...(reward === null ? [] : [`reward ${Number(reward.toPrecision(3))}`])];
  element.append(make("summary", {}, greedy ? "greedy: " : `${number}: `, quoted(answer, formulas), ` (${facts.join(", ")})`));
  element.addEventListener("toggle", () => element.append(said(text, formulas)), { once: true });
  return { element, answer };
}

function clusterButtons(lines, formulas) {
  const counts = new Map();
  for (const { answer } of lines) counts.set(answer, (counts.get(answer) ?? 0) + 1);
  const group = make("div", { class: "clusters", role: "group", "aria-label": "Show only the answers with this result" });
  const choose = (wanted, chosen) => {
    for (const button of group.children) button.setAttribute("aria-pressed", button === chosen ? "true" : "false");
    for (const { element, answer } of lines) element.hidden = wanted !== undefined && answer !== wanted;
  };
  const add = (wanted, ...label) => {
    const button = make("button", { type: "button", "aria-pressed": wanted === undefined ? "true" : "false" }, ...label);
    button.addEventListener("click", () => choose(wanted, button));
    group.append(button);
  };
  add(undefined, `all ${lines.length}`);
  for (const [answer, count] of [...counts].sort((a, b) => b[1] - a[1])) add(answer, quoted(answer, formulas), ` × ${count}`);
  return group;
}

function startQuestions() {
  const stored = { search: "value", sort: "value", when: "value", wrong: "checked", flipped: "checked", tied: "checked", undecided: "checked" };
  for (const [name, kind] of Object.entries(stored)) {
    const control = byId(name) ?? document.querySelector(`[name=${name}]`);
    const before = control[kind];
    if (state.has(name)) control[kind] = kind === "checked" ? true : state.get(name);
    control.addEventListener("input", () => {
      remember(name, control[kind] === before ? "" : control[kind]);
      filter();
    });
  }
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", showMore);
  const select = byId("run");
  if (select) {
    if (Number(state.get("run")) in data.runs) select.value = state.get("run") ?? "0";
    run = Number(select.value);
    select.addEventListener("input", () => {
      run = Number(select.value);
      remember("run", run || "");
      showRun();
    });
  }
  return showRun();
}

// --- A run that goes on

function startReloading() {
  const box = byId("reload");
  if (!box) return;
  box.checked = state.get("reload") !== "off";
  box.addEventListener("input", () => remember("reload", box.checked ? "" : "off"));
  setInterval(() => {
    const busy = document.hidden || document.activeElement === byId("search") || !getSelection().isCollapsed;
    if (!box.checked || busy) return;
    remember("y", Math.round(scrollY));
    location.reload();
  }, 1000 * data.reload_s);
}

function startLinks() {
  for (const link of document.querySelectorAll("nav a, .skip")) {
    link.addEventListener("click", (event) => {
      event.preventDefault(); // the address keeps the state
      const target = document.querySelector(link.getAttribute("href"));
      target.scrollIntoView();
      target.focus({ preventScroll: true });
    });
  }
}

async function start() {
  for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
  startLinks();
  startCurves();
  startReloading();
  await startQuestions();
  if (state.has("y")) {
    history.scrollRestoration = "manual";
    scrollTo(0, Number(state.get("y")));
    remember("y", "");
  }
  document.documentElement.dataset.ready = "";
}

start();
