// What the explorer's pages do beyond being read: sort, shade, keys, theme, and tell when they are no longer true.
"use strict";

const find = (selector) => document.querySelector(selector);
const notice = find("#notice");

function say(text, reload) {
  notice.textContent = text;
  if (reload) {
    const button = document.createElement("button");
    button.textContent = "Reload";
    button.addEventListener("click", () => location.reload());
    notice.append(" ", button);
  }
  notice.hidden = false;
}

// ---- theme ----------------------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];
function stored(name) {
  try { return localStorage.getItem(name); } catch { return null; }  // storage may be switched off
}
function store(name, value) {
  try { localStorage.setItem(name, value); } catch { /* then it holds for this page */ }
}
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  find("#theme").textContent = `Theme: ${theme}`;
  store("theme", theme);
}
let theme = THEMES.includes(stored("theme")) ? stored("theme") : "system";
function nextTheme() {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
}
if (find("#theme")) {
  find("#theme").hidden = false;
  find("#theme").addEventListener("click", nextTheme);
  setTheme(theme);
}

// ---- numbers under the tokens -----------------------------------------------------------------------------------------

const values = find("#values");
function showValues(shown) {
  document.body.classList.toggle("values", shown);
  if (values) values.checked = shown;
  store("values", shown ? "yes" : "no");
}
if (values) {
  values.addEventListener("change", () => showValues(values.checked));
  showValues(stored("values") === "yes");
}

// ---- tables that sort -------------------------------------------------------------------------------------------------

function keyOf(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim().replaceAll("−", "-").replaceAll(",", "").replace(/ %$/, "");
  const value = Number(text);
  return text !== "" && !Number.isNaN(value) ? value : text;
}
function compare(a, b) {
  const numbers = [a, b].map((value) => typeof value === "number");
  if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
  return numbers[0] ? a - b : a.localeCompare(b, undefined, { numeric: true });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending" && head.classList.contains("n")
        || head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
      const absent = ([key]) => key === "" || key === "–";  // comes last, whichever way
      rows.sort((a, b) => absent(a) - absent(b) || (down ? -1 : 1) * compare(a[0], b[0]));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// ---- parts that are asked for later -----------------------------------------------------------------------------------

async function ask(address) {
  let answer;
  try {
    answer = await fetch(address, { cache: "no-store" });
  } catch {
    throw new Error("The server does not answer: start `neuronlake serve` again, then reload.");
  }
  const text = await answer.text();
  if (!answer.ok) throw new Error(text);
  return text;
}

for (const each of document.querySelectorAll(".actions")) each.hidden = false;  // without scripts they would do nothing
const shade = find("#shade");
if (shade) {
  shade.addEventListener("click", async () => {
    const rows = [...document.querySelectorAll("table.contexts tr[data-row]")];
    if (!rows.length) return;
    shade.disabled = true;
    shade.textContent = "Reading…";
    try {
      const numbers = [...new Set(rows.map((row) => row.dataset.row))];
      const address = new URL(shade.dataset.address, location.href);
      address.searchParams.set("rows", numbers.join(","));
      const found = new DOMParser().parseFromString(await ask(address), "text/html");
      for (const row of rows) {
        const shown = found.querySelector(`[data-row="${row.dataset.row}"]`);
        const links = [...row.querySelectorAll(".text > a, .text > .dim")];
        row.querySelector(".text").replaceChildren(...shown.cloneNode(true).childNodes, " ", ...links);
      }
      shade.textContent = "Every token is shaded";
    } catch (error) {
      say(error.message, true);
      shade.textContent = "Shade every token";
      shade.disabled = false;
    }
  });
}

for (const button of document.querySelectorAll("button[data-part]")) {
  button.addEventListener("click", async () => {
    const place = find(button.dataset.part);
    button.disabled = true;
    place.setAttribute("aria-busy", "true");
    try {
      const found = new DOMParser().parseFromString(await ask(button.dataset.address), "text/html");
      place.replaceChildren(...found.body.childNodes);
    } catch (error) {
      say(error.message, true);
    }
    place.removeAttribute("aria-busy");
    button.disabled = false;
  });
}

// ---- a page that stays open -------------------------------------------------------------------------------------------

const { state, stateAddress } = document.body.dataset;
let hiddenAt = 0;
async function look() {
  if (!stateAddress) return;
  try {
    const now = await ask(stateAddress);
    if (state && now !== state) say("The lake has changed since this page was loaded.", true);
    else notice.hidden = true;
  } catch (error) {
    say(error.message, true);
  }
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = Date.now();
  else if (Date.now() - hiddenAt > 60000) look();
});
window.addEventListener("focus", () => { if (hiddenAt && Date.now() - hiddenAt > 60000) look(); });
window.addEventListener("pageshow", (event) => { if (event.persisted) look(); });
setInterval(() => { if (!document.hidden) look(); }, 300000);

// ---- keys -------------------------------------------------------------------------------------------------------------

const help = find("#help");
if (find("#keys")) {
  find("#keys").hidden = false;
  find("#keys").addEventListener("click", () => help.showModal());
}
const KEYS = {
  "/": () => find("#find")?.focus(),
  "?": () => help.showModal(),
  "o": () => find("header nav a:nth-child(2)")?.click(),
  "[": () => find("a[rel=prev]")?.click(),
  "]": () => find("a[rel=next]")?.click(),
  "t": nextTheme,
  "v": () => showValues(!document.body.classList.contains("values")),
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, [contenteditable]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || help?.open) return;
  const act = KEYS[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});
