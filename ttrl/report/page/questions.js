// The questions: found, and shown with their votes and answers

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
