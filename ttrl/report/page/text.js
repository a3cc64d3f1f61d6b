"use strict";
// First of the page's scripts: its state, and elements. What models wrote becomes text nodes and, for
// formulas, elements of MathML that formulas.py has let through; no string becomes HTML or code.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const PAGE = 20; // questions that are listed at once
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
