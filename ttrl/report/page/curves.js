// Curves: a step, and the values at it

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
