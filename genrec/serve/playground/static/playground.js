// The playground: a client of the server's own routes, with no library and no other source.

const $ = (id) => document.getElementById(id);
const KEY = "genrec-key";
const state = { facts: null, history: [], answers: [], prefix: [], busy: 0 };

// ---- the server -------------------------------------------------------------------------------

class Fault extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function call(path, body) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, { method: body ? "POST" : "GET", headers,
      body: body ? JSON.stringify(body) : undefined });
  } catch (error) {
    throw new Fault(`The server does not answer (${error.message}).`, 0);
  }
  const value = await reply.json().catch(() => ({}));
  if (reply.ok) return value;
  if (reply.status === 401) askForKey();
  const told = value.detail ?? value.title ?? reply.statusText;
  const id = reply.headers.get("X-Request-ID");
  throw new Fault(`${typeof told === "string" ? told : JSON.stringify(told)}` +
    (reply.status >= 500 && id ? `\nRequest ${id}` : ""), reply.status);
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

// ---- small pieces of page ---------------------------------------------------------------------

function make(tag, settings = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const nameOf = (item) => item.title || item.item_id;
const round = (score) => score.toFixed(3);
const letters = "abcdefghijklmnopqrstuvwxyz";
const spell = (level, code) => `<${letters[level]}_${code}>`;

function bar(share) {
  const fill = make("i");
  fill.style.width = `${Math.max(1, Math.min(100, 100 * share))}%`;
  return make("div", { class: "bar", "aria-hidden": "true" }, fill);
}

function say(text) { $("status").textContent = text; }

function complain(error) {
  $("fault").textContent = error ? error.message : "";
  $("fault").hidden = !error;
}

// ---- history ----------------------------------------------------------------------------------

function addItem(item) {
  state.history.push(item);
  drawHistory();
}

function drawHistory() {
  $("no-history").hidden = state.history.length > 0;
  $("history").replaceChildren(...state.history.map((item, place) => make("li", {},
    make("span", { title: item.item_id }, nameOf(item)),
    make("button", { type: "button", "aria-label": `Earlier: ${nameOf(item)}`,
      disabled: place === 0, onclick: () => moveItem(place) }, "↑"),
    make("button", { type: "button", "aria-label": `Remove ${nameOf(item)}`,
      onclick: () => removeItem(place) }, "×"))));
}

function moveItem(place) {
  const [item] = state.history.splice(place, 1);
  state.history.splice(place - 1, 0, item);
  drawHistory();
  $("history").children[place - 1].querySelectorAll("button")[place > 1 ? 0 : 1].focus();
}

function removeItem(place) {
  state.history.splice(place, 1);
  drawHistory();
  const next = $("history").children[Math.min(place, state.history.length - 1)];
  (next ? next.querySelector("button:last-child") : $("find")).focus();
}

// ---- the box that finds items -----------------------------------------------------------------

const finder = { items: [], chosen: -1, timer: 0, asked: 0 };

function showFound(items) {
  finder.items = items;
  finder.chosen = items.length ? 0 : -1;
  const rows = items.map((item, place) => make("li", { role: "option", id: `found-${place}`,
    onmousedown: (event) => { event.preventDefault(); take(place); } },
    nameOf(item), " ", make("code", {}, item.item_id)));
  $("found").replaceChildren(...(rows.length ? rows
    : [make("li", { class: "none" }, "No item has these words.")]));
  $("found").hidden = false;
  $("find").setAttribute("aria-expanded", "true");
  mark();
}

function mark() {
  [...$("found").children].forEach((row, place) => {
    row.setAttribute("aria-selected", place === finder.chosen);
    if (place === finder.chosen) row.scrollIntoView({ block: "nearest" });
  });
  if (finder.chosen >= 0) $("find").setAttribute("aria-activedescendant", `found-${finder.chosen}`);
  else $("find").removeAttribute("aria-activedescendant");
}

function closeFound() {
  $("found").hidden = true;
  $("find").setAttribute("aria-expanded", "false");
  $("find").removeAttribute("aria-activedescendant");
}

function take(place) {
  addItem(finder.items[place]);
  $("find").value = "";
  closeFound();
}

async function find() {
  const asked = ++finder.asked;
  const text = $("find").value.trim();
  if (!text) return closeFound();
  try {
    const found = await call(`v1/items?q=${encodeURIComponent(text)}&limit=12`);
    if (asked === finder.asked) showFound(found.items);
  } catch (error) { complain(error); }
}

$("find").addEventListener("input", () => {
  clearTimeout(finder.timer);
  finder.timer = setTimeout(find, 120);
});
$("find").addEventListener("blur", closeFound);
$("find").addEventListener("keydown", (event) => {
  const open = !$("found").hidden;
  if (event.key === "Escape") closeFound();
  else if (event.key === "Enter") {
    event.preventDefault();
    if (open && finder.chosen >= 0) take(finder.chosen);
    else if (!$("find").value.trim() && state.history.length) ask();
    else find();
  } else if (["ArrowDown", "ArrowUp"].includes(event.key)) {
    event.preventDefault();
    if (!open) return find();
    const step = event.key === "ArrowDown" ? 1 : -1;
    const n = finder.items.length;
    if (n) finder.chosen = (finder.chosen + step + n) % n;
    mark();
  }
});

$("surprise").addEventListener("click", async () => {
  try {
    const found = await call("v1/items?sample=3");
    found.items.forEach(addItem);
  } catch (error) { complain(error); }
});

// ---- asking -----------------------------------------------------------------------------------

function readRequest(adapter) {
  const request = {
    history: state.history.map((item) => item.item_id),
    k: Number($("k").value),
    normalize: $("normalize").value,
    exact: $("exact").checked,
    filters: { exclude_seen: $("unseen").checked },
  };
  if ($("width").value) request.width = Number($("width").value);
  if ($("category").value.trim()) request.filters.categories = [$("category").value.trim()];
  if ($("user").value.trim()) request.user_id = $("user").value.trim();
  if ($("explain").checked) request.explain = true;
  if (adapter) request.adapter = adapter;
  return request;
}

async function ask() {
  complain(null);
  if (!state.history.length) {
    complain(new Fault("The history is empty: search for an item and add it.", 0));
    $("find").focus();
    return;
  }
  const turn = ++state.busy;
  say("Asking …");
  const adapters = state.facts?.adapters.length ? [$("adapter-a").value] : [""];
  if (state.facts?.adapters.length && $("adapter-b").value !== "none") {
    adapters.push($("adapter-b").value);
  }
  try {
    const started = performance.now();
    const answers = await Promise.all(adapters.map((name) =>
      call("v1/recommendations", readRequest(name))));
    if (turn !== state.busy) return;
    state.answers = answers.map((answer, place) => ({ ...answer, adapter: adapters[place] }));
    drawAnswers();
    say(`Answered in ${Math.round(performance.now() - started)} ms.`);
    drawBeam(await call("v1/beam", readRequest(adapters[0])).catch((error) => error), turn);
  } catch (error) {
    if (turn === state.busy) { say(""); complain(error); }
  }
}

function drawAnswers() {
  const lists = state.answers;
  const everywhere = new Set(lists.length > 1
    ? lists[0].items.map((item) => item.item_id)
      .filter((id) => lists[1].items.some((other) => other.item_id === id)) : []);
  $("view-items").replaceChildren(make("div", { class: "lists" },
    ...lists.map((answer) => drawList(answer, everywhere))));
}

function drawList(answer, everywhere) {
  const scores = answer.items.map((item) => item.score);
  const best = Math.exp(Math.max(...scores));
  const proof = answer.certified
    ? make("span", { class: "badge good" }, "certified: no item outside scores higher")
    : make("span", { class: "badge" }, "not certified");
  return make("section", {},
    state.answers.length > 1
      ? make("h3", {}, `${answer.adapter || "as trained"}: ${everywhere.size} of ` +
        `${answer.items.length} in both`) : null,
    make("p", { class: "small" }, proof,
      ` catalogue version ${answer.version}, ${answer.evaluations} prefixes asked about`),
    answer.items.length ? make("ol", { class: "cards" }, ...answer.items.map((item) =>
      make("li", { class: `item${everywhere.has(item.item_id) ? " shared" : ""}` },
        make("span", { class: "rank" }, String(item.rank)),
        make("h3", {}, nameOf(item)),
        make("button", { type: "button", "aria-label": `Add ${nameOf(item)} to the history`,
          onclick: () => { addItem(item); say(`Added: ${nameOf(item)}`); } }, "+"),
        make("div", { class: "meta small soft" }, make("code", {}, item.item_id),
          make("span", {}, `score ${round(item.score)}`), item.sid
            ? make("button", { type: "button", class: "link sid", title: "Walk to its codes",
              onclick: () => walkTo(item.sid) }, item.sid) : null),
        bar(Math.exp(item.score) / best),
        item.reason ? make("p", { class: "reason small" }, item.reason) : null)))
      : make("p", { class: "soft" }, "No item may be answered under these filters."));
}

// ---- the beam as a tree -----------------------------------------------------------------------

function drawBeam(beam, turn) {
  if (turn !== state.busy) return;
  if (beam instanceof Error) {
    $("view-beam").replaceChildren(make("p", { class: "soft" }, beam.message));
    return;
  }
  const rows = new Map([["", { children: [] }]]);
  beam.levels.forEach((level) => level.forEach((prefix) => {
    const row = { ...prefix, children: [] };
    rows.set(prefix.codes.join("."), row);
    rows.get(prefix.codes.slice(0, -1).join("."))?.children.push(row);
  }));
  $("view-beam").replaceChildren(
    make("p", { class: "small soft" }, `Best first at each level; struck through: the best of the ` +
      `prefixes that the search left. Scores are log-probabilities so far.`),
    make("ul", { class: "tree" }, ...rows.get("").children.map((row) => drawPrefix(row))));
}

const leadsToAnswer = (row) => row.children.length
  ? row.children.some(leadsToAnswer) : row.kept && row.title != null;

function drawPrefix(row) {
  const level = row.codes.length - 1;
  const about = row.title ?? row.examples.join(" · ");
  const words = [make("code", {}, spell(level, row.codes[level])),
    make("span", { class: row.title != null && row.kept ? "answer" : "" }, about),
    make("span", { class: "score" }, round(row.score) +
      (row.title == null ? `, ${row.n_items} item${row.n_items === 1 ? "" : "s"}` : ""))];
  const line = make("li", { class: row.kept ? "" : "left" });
  if (!row.children.length) line.append(make("div", { class: "leaf" }, ...words));
  else line.append(make("details", { open: leadsToAnswer(row) },
    make("summary", {}, ...words), make("ul", {}, ...row.children.map(drawPrefix))));
  return line;
}

// ---- the tree of codes ------------------------------------------------------------------------

function walkTo(sid) {
  const codes = [...sid.matchAll(/_(\d+)>/g)].map((match) => Number(match[1]));
  choose("codes");
  walk(codes.slice(0, -1));
}

async function walk(prefix) {
  try {
    const found = await call(`v1/codes?prefix=${prefix.join(".")}`);
    state.prefix = prefix;
    drawCodes(found);
    complain(null);
  } catch (error) { complain(error); }
}

function drawCodes(found) {
  const crumbs = [make("button", { type: "button", onclick: () => walk([]) }, "All items")];
  state.prefix.forEach((code, level) => crumbs.push(make("button", { type: "button",
    onclick: () => walk(state.prefix.slice(0, level + 1)) }, spell(level, code))));
  const most = Math.max(...found.branches.map((branch) => branch.n_items));
  const level = state.prefix.length;
  $("view-codes").replaceChildren(
    make("div", { class: "crumbs", "aria-label": "Prefix" }, ...crumbs),
    make("p", { class: "small soft" }, `${found.branches.length} codes follow, ` +
      `${found.n_items} items below, level ${level + 1} of ${found.n_levels}`),
    make("ul", { class: "branches" }, ...found.branches.map((branch) => {
      const words = [make("code", {}, spell(level, branch.code)),
        make("span", { class: "examples" }, branch.item ? nameOf(branch.item)
          : branch.examples.join(" · ") + (branch.n_items > branch.examples.length ? " …" : "")),
        make("span", { class: "soft small" }, branch.item ? branch.item.item_id
          : `${branch.n_items} item${branch.n_items === 1 ? "" : "s"}`)];
      const inner = branch.item
        ? make("div", {}, ...words, make("button", { type: "button",
          "aria-label": `Add ${nameOf(branch.item)} to the history`,
          onclick: () => { addItem(branch.item); say(`Added: ${nameOf(branch.item)}`); } },
          "Add to the history"))
        : make("button", { type: "button", onclick: () => walk([...state.prefix, branch.code]) },
          ...words, bar(branch.n_items / most));
      return make("li", { class: "branch" }, inner);
    })));
}

// ---- tabs, theme, key, start ------------------------------------------------------------------

const tabs = ["items", "beam", "codes"];

function choose(name) {
  for (const tab of tabs) {
    const on = tab === name;
    $(`tab-${tab}`).setAttribute("aria-selected", on);
    $(`tab-${tab}`).tabIndex = on ? 0 : -1;
    $(`view-${tab}`).hidden = !on;
  }
  if (name === "codes" && !$("view-codes").children.length) walk([]);
}

tabs.forEach((name, place) => {
  $(`tab-${name}`).addEventListener("click", () => choose(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    choose(next);
    $(`tab-${next}`).focus();
  });
});

function showTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", dark);
}

const likesDark = matchMedia("(prefers-color-scheme: dark)");
showTheme(localStorage.getItem("genrec-theme")
  ? localStorage.getItem("genrec-theme") === "dark" : likesDark.matches);
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme !== "dark";
  localStorage.setItem("genrec-theme", dark ? "dark" : "light");
  showTheme(dark);
});

$("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key-form").hidden = true;
  complain(null);
  start();
});

function option(value, text) { return make("option", { value }, text); }

async function start() {
  try {
    const facts = await call("v1/playground");
    state.facts = facts;
    $("about").textContent = `${facts.model}: ${facts.n_items.toLocaleString("en")} items, ` +
      `catalogue version ${facts.version}, engine ${facts.engine}`;
    $("k").max = facts.max_k;
    $("width").max = facts.max_width;
    $("categories").replaceChildren(...facts.categories.map((name) => option(name, "")));
    $("category").parentElement.hidden = !facts.categories.length;
    $("user-label").hidden = !facts.needs_users;
    $("adapters").hidden = !facts.adapters.length;
    const names = facts.adapters.map((name) => option(name, name));
    $("adapter-a").replaceChildren(option("", "as trained"), ...names.map((n) => n.cloneNode(true)));
    $("adapter-b").replaceChildren(option("none", "nothing"), option("", "as trained"), ...names);
    $("tab-codes").hidden = !facts.has_codes;
  } catch (error) {
    $("about").textContent = "";
    complain(error);
  }
}

drawHistory();
start();
