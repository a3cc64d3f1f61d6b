// What begins when the page is there; and a run that goes on

function sayWhetherRefreshed() {
  const silent = Date.now() / 1000 - data.written_s > data.silent_s;
  byId("alive").hidden = silent;
  byId("silent").hidden = !silent;
  byId("live").classList.toggle("over", silent);
}

function startReloading() {
  const box = byId("reload");
  if (!box) return;
  sayWhetherRefreshed();
  box.checked = state.get("reload") !== "off";
  box.addEventListener("input", () => remember("reload", box.checked ? "" : "off"));
  setInterval(() => {
    sayWhetherRefreshed();
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
