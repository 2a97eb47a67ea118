// The second half of the page's script: filters, the grid, the keyboard. Before it: decisions.js.

// --- filters --------------------------------------------------------------------------------------------------------

function passes(place) {
  const item = items[place], state = find("state").value, decision = decisions.get(place);
  if (finding && !(item.findings || []).includes(finding)) return false;
  if (find("class").value && find("class").value !== `=${item.label || ""}`) return false;
  if (state === "undecided") return !decision;
  if (state === "decided") return Boolean(decision);
  return !state || standing(place).choice === state;
}

function filter() {
  shown = [];
  for (let place = 0; place < suspects; place++) if (passes(place)) shown.push(place);
  const rank = (place) => items[place].rank ?? suspects;
  if (finding === "label-issue") shown.sort((one, other) => rank(one) - rank(other));
  find("empty").hidden = shown.length > 0;
  find("empty").textContent = suspects ? "No suspect passes these filters." : "Nothing suspicious was found. There is nothing to decide.";
  find("meaning").textContent = finding ? data.findings[finding] : "";
  for (const chip of find("findings").children) chip.setAttribute("aria-pressed", chip.dataset.finding === finding);
  dropCards(() => true);
  current = 0;
  measure();
  if (scrollY > grid.offsetTop) scrollTo(0, start() - bar());
  render();
  refresh();
}

function tally() {
  const totals = new Map([["", [0, 0]]]); // finding -> how many are decided, of how many
  for (let place = 0; place < suspects; place++) {
    for (const name of ["", ...items[place].findings]) {
      const counts = totals.get(name) || totals.set(name, [0, 0]).get(name);
      counts[0] += decisions.has(place);
      counts[1] += 1;
    }
  }
  return totals;
}

function makeFilters() {
  const totals = tally();
  for (const name of ["", ...Object.keys(data.findings)]) {
    if (!totals.has(name)) continue;
    const chip = element("button", name || "all");
    chip.dataset.finding = name;
    chip.title = data.findings[name] || "";
    chip.append(element("span"));
    find("findings").append(chip);
  }
  const labelled = Map.groupBy(items.slice(0, suspects), (item) => item.label || "");
  const names = [...labelled.keys()].sort((one, other) => one.localeCompare(other, "en"));
  for (const name of names) find("class").append(new Option(`${plain(name) || "no class"} (${count(labelled.get(name).length)})`, `=${name}`));
}

// --- the grid: only what is near the window exists ------------------------------------------------------------------

let layout = { columns: 1, width: 1, height: 1, gap: 1 };
const start = () => grid.getBoundingClientRect().top + scrollY;
const bar = () => find("bar").offsetHeight;

function measure() {
  const size = (name) => parseFloat(getComputedStyle(grid).getPropertyValue(name));
  const gap = size("--gap"), least = size("--least");
  const columns = Math.max(1, Math.floor((grid.clientWidth + gap) / (least + gap)));
  layout = { columns, gap, height: size("--height"), width: (grid.clientWidth - gap * (columns - 1)) / columns };
  document.documentElement.style.setProperty("--bar", `${bar()}px`);
  grid.style.height = `${Math.max(0, Math.ceil(shown.length / columns) * (layout.height + gap) - gap)}px`;
}

function render() {
  const from = scrollY - start(), step = layout.height + layout.gap;
  const first = Math.max(0, Math.floor((from - OVERSCAN) / step)) * layout.columns;
  const end = Math.min(shown.length, Math.ceil((from + innerHeight + OVERSCAN) / step) * layout.columns);
  const wanted = new Set(shown.slice(first, end));
  dropCards((place) => !wanted.has(place));
  for (let at = first; at < end; at++) setCard(at);
}

function dropCards(unwanted) {
  for (const [place, card] of cards) {
    if (unwanted(place, card)) { card.remove(); cards.delete(place); }
  }
}

function setCard(at) {
  const place = shown[at];
  let card = cards.get(place);
  if (!card) {
    card = makeCard(place);
    cards.set(place, card);
    grid.append(card);
    refreshCard(place, card);
  }
  card.style.width = `${layout.width}px`;
  const across = (at % layout.columns) * (layout.width + layout.gap);
  card.style.transform = `translate(${across}px, ${Math.floor(at / layout.columns) * (layout.height + layout.gap)}px)`;
  card.setAttribute("aria-posinset", at + 1);
  card.setAttribute("aria-setsize", shown.length);
}

function makeCard(place) {
  const item = items[place];
  const card = find("card").content.firstElementChild.cloneNode(true);
  const part = (name) => card.querySelector(`.${name}`);
  card.dataset.place = place;
  part("pictures").append(...figures(place));
  part("name").textContent = plain(item.path.split("/").at(-1));
  part("name").title = plain(item.path);
  part("label").textContent = plain(item.label || "no class");
  const hint = doubt(item);
  if (hint) part("label").append(element("i", `, ${hint}`));
  part("why").textContent = plain(item.reason || (item.findings || []).join(", "));
  part("text").title = plain(item.reason || "");
  return card;
}

// What speaks against an item's class, in a few words; it stands behind the class.
function doubt(item) {
  const twin = items[item.twin];
  if (twin && twin.label !== item.label) return `also in ${plain(twin.label || "no class")}`;
  return item.likelier ? `rather ${plain(item.likelier)}` : "";
}

// An item, and beside it what it duplicates.
function figures(place) {
  const { twin } = items[place];
  const one = (place, caption) => figure(place, plain(items[place].path), caption);
  return twin === undefined ? [one(place)] : [one(place, "this"), one(twin, "duplicates")];
}

function badge(place) {
  const { by, choice, text } = standing(place);
  const made = element("p", text, "badge");
  Object.assign(made.dataset, { by, choice });
  return made;
}

function refreshCard(place, card) {
  const { by, choice, text } = standing(place);
  Object.assign(card.dataset, { by, choice });
  Object.assign(card.querySelector(".badge"), { textContent: text, title: text });
  press(card.querySelectorAll("button"), place);
  const here = shown[current] === place;
  if (here) card.setAttribute("aria-current", "true");
  else card.removeAttribute("aria-current");
  card.tabIndex = here ? 0 : -1;
  card.setAttribute("aria-label", `${plain(items[place].path)}, ${text}`);
}

function press(buttons, place) {
  const chosen = decisions.get(place)?.choice;
  for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.choice === chosen);
}

function refresh() {
  for (const [place, card] of cards) refreshCard(place, card);
  const totals = tally(), [decided, all] = totals.get("");
  find("progress").value = decided;
  find("progress").max = Math.max(all, 1);
  find("decided").textContent = `${count(decided)} of ${count(all)} decided`;
  for (const chip of find("findings").children) {
    const [done, total] = totals.get(chip.dataset.finding);
    chip.lastElementChild.textContent = done === total && total ? `✓ ${count(total)}` : count(total);
  }
  const open = undecided(), excluded = excludedOf(open);
  find("accept").textContent = `Accept ${many(open.length, "image")}: excludes ${count(excluded)}`;
  find("accept").disabled = !open.length;
  find("save").disabled = !(decisions.size + elsewhere.length + left().length);
  showDetail();
}

// --- where the person is --------------------------------------------------------------------------------------------

function select(at, opening = false) {
  current = Math.max(0, Math.min(shown.length - 1, at));
  const row = Math.floor(current / layout.columns) * (layout.height + layout.gap) + start();
  if (row < scrollY + bar() + 8) scrollTo(0, row - bar() - 12);
  else if (row + layout.height > scrollY + innerHeight) scrollTo(0, row + layout.height + 16 - innerHeight);
  render();
  for (const [place, card] of cards) refreshCard(place, card);
  cards.get(shown[current])?.focus({ preventScroll: true });
  showDetail();
  if (opening) document.body.classList.add("opened");
}

function showDetail() {
  const place = shown[current], detail = find("detail");
  detail.hidden = place === undefined;
  if (place === undefined) return;
  const item = items[place];
  const pictures = element("div", "", "pictures");
  pictures.append(...figures(place));
  const meanings = (item.findings || []).map((name) => element("p", data.findings[name], "meaning"));
  const parts = [pictures, badge(place), path("h2", item.path), ...meanings, pairs(item)];
  if (item.twin !== undefined) parts.push(twinPart(place, item.twin));
  if (item.pictures) {
    const noted = element("div", "", "noted");
    noted.append(...item.pictures.map(([caption, number]) => figure(number, plain(caption), plain(caption))));
    parts.push(noted);
  }
  find("about").replaceChildren(...parts);
  press(find("choices").children, place);
}

function pairs(item) {
  const list = element("dl");
  const rows = [["class", item.label || "no class"], ["likelier", item.likelier], ["found", (item.findings || []).join(", ")], ["why", item.reason], ["file", item.facts]];
  for (const [name, value] of rows.filter(([, value]) => value)) {
    const row = element("div");
    row.append(element("dt", name), path("dd", value));
    list.append(row);
  }
  return list;
}

function twinPart(place, twin) {
  const part = find("twin").content.firstElementChild.cloneNode(true);
  const [, facts, button, other] = part.children;
  facts.before(path("p", items[twin].path));
  facts.textContent = items[twin].facts || "";
  if (decisions.has(twin) || items[twin].findings) button.before(badge(twin));
  button.addEventListener("click", () => swap(place));
  other.addEventListener("click", () => swap(place, true));
  return part;
}

// --- large: the files themselves, where they still lie as they did from here ----------------------------------------

function enlarge(place) {
  const { twin } = items[place];
  find("missing").textContent = "";
  find("whole").replaceChildren(...[place, ...(twin === undefined ? [] : [twin])].map(whole));
  find("large").showModal();
}

function whole(place) {
  const item = items[place], made = figure(place, plain(item.path), plain(item.path)), image = made.querySelector("img");
  if (image && !item.findings?.some((name) => name === "undecodable" || name === "bomb")) {
    const small = image.src;
    image.onerror = () => {
      image.onerror = null;
      image.src = small;
      find("missing").textContent = "Shown small: the file is not where it was, or is of a format that this browser does not show.";
    };
    image.src = [data.images, ...item.path.split("/").map(encodeURIComponent)].join("/");
  }
  return made;
}

find("back").addEventListener("click", () => find("large").close());
find("large").addEventListener("close", () => select(current)); // the keys are for the images again
find("about").addEventListener("click", (event) => { if (event.target.closest("#about > .pictures img")) enlarge(shown[current]); });

// --- choosing a class -----------------------------------------------------------------------------------------------

let relabelled = 0, offered = [], aimed = 0; // the item, the classes on offer, and which of them Enter takes

function askClass(place) {
  relabelled = place;
  find("wanted").value = "";
  find("asked").textContent = plain(items[place].path);
  find("relabel").showModal();
  offer();
  find("wanted").focus();
}

function offer() {
  const item = items[relabelled], wanted = find("wanted").value.toLowerCase();
  const first = [item.likelier, item.twin === undefined ? "" : items[item.twin].label].filter((name) => name !== item.label && classes.includes(name));
  const others = classes.filter((name) => name !== item.label && !first.includes(name));
  offered = [...new Set([...first, ...others])].filter((name) => name.toLowerCase().replaceAll("_", " ").includes(wanted.replaceAll("_", " ")));
  const options = offered.slice(0, 200).map((name, at) => {
    const option = element("li", plain(name));
    option.id = `class-${at}`;
    option.role = "option";
    option.dataset.at = at;
    if (first.includes(name)) option.append(element("span", name === item.likelier ? "likelier" : "of its twin"));
    return option;
  });
  find("classes").replaceChildren(...options);
  point(0);
}

function point(at) {
  aimed = Math.max(0, Math.min(find("classes").children.length - 1, at));
  for (const option of find("classes").children) option.setAttribute("aria-selected", option.dataset.at === String(aimed));
  find("wanted").setAttribute("aria-activedescendant", offered.length ? `class-${aimed}` : "");
  find("classes").children[aimed]?.scrollIntoView({ block: "nearest" });
}

function relabelTo(name) {
  find("relabel").close();
  if (name === undefined) return;
  choose(relabelled, "relabel", name);
  if (shown[current] === relabelled) select(current + 1);
}

find("wanted").addEventListener("input", offer);
find("wanted").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) point(aimed + step);
  else if (event.key === "Enter") relabelTo(offered[aimed]);
  else return;
  event.preventDefault();
});
find("classes").addEventListener("click", (event) => {
  const option = event.target.closest("li");
  if (option) relabelTo(offered[Number(option.dataset.at)]);
});
find("cancel").addEventListener("click", () => find("relabel").close());

// --- mouse and keyboard ---------------------------------------------------------------------------------------------

const act = (place, choice) => (choice === "relabel" ? askClass(place) : choose(place, choice));

grid.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (!card) return;
  const place = Number(card.dataset.place), choice = event.target.closest("button")?.dataset.choice;
  select(shown.indexOf(place), !choice);
  if (choice) act(place, choice);
});

find("choices").addEventListener("click", (event) => {
  const choice = event.target.closest("button")?.dataset.choice;
  if (choice) act(shown[current], choice);
});

const STEPS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
const ROWS = { ArrowUp: -1, ArrowDown: 1, PageUp: -3, PageDown: 3 };
const KEYS = {
  k: (place) => { choose(place, "keep"); select(current + 1); },
  e: (place) => { choose(place, "exclude"); select(current + 1); },
  r: (place) => askClass(place),
  o: (place) => swap(place),
  t: (place) => swap(place, true),
  l: (place) => enlarge(place),
  u: (place) => decide([[place, undefined]], ""),
};

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !shown.length) return;
  if (event.key === "Escape") document.body.classList.remove("opened");
  const meant = KEYS[event.key.toLowerCase()], step = STEPS[event.key] || ROWS[event.key] * layout.columns;
  if (step) select(current + step);
  else if (meant) meant(shown[current]);
  else return;
  event.preventDefault();
});

let silence = 0;

function say(message, undo, verb = "Undo", done = "Undone.") {
  clearTimeout(silence);
  find("status").hidden = !message;
  find("said").textContent = message;
  find("undo").hidden = !undo;
  find("undo").textContent = verb;
  find("undo").onclick = () => { undo?.(); say(done); };
  if (message) silence = setTimeout(() => say(""), undo ? 12_000 : 6_000);
}

find("findings").addEventListener("click", (event) => {
  const chip = event.target.closest("button");
  if (!chip) return;
  finding = chip.dataset.finding;
  filter();
});
for (const id of ["class", "state"]) {
  let pointed = false; // with the mouse: then the keys are for the images again
  find(id).addEventListener("pointerdown", () => { pointed = true; });
  find(id).addEventListener("keydown", () => { pointed = false; });
  find(id).addEventListener("change", () => { filter(); if (pointed) find(id).blur(); });
}
find("accept").addEventListener("click", acceptShown);
find("save").addEventListener("click", saveDecisions);
find("load").addEventListener("click", () => find("file").click());
find("file").addEventListener("change", async () => {
  const [file] = find("file").files;
  if (file) loadDecisions(await file.text(), file.name);
  find("file").value = ""; // so that the same file can be loaded again
});
find("close").addEventListener("click", () => document.body.classList.remove("opened"));

let drawing = 0;

function soon() {
  cancelAnimationFrame(drawing);
  drawing = requestAnimationFrame(render);
}

addEventListener("scroll", soon, { passive: true });
new ResizeObserver(() => { measure(); soon(); }).observe(grid);
addEventListener("storage", (event) => { if (event.key === KEY) { recall(); refresh(); } }); // the page in another tab
addEventListener("beforeunload", (event) => { if (!remembers && unsaved) event.preventDefault(); });

// Pictures stand at the end of the page: what was drawn before they had arrived is drawn again.
function arrive() {
  dropCards((place, card) => card.querySelector("span:empty"));
  render();
  refresh();
}

// What was decided before and is no suspect any more is saved along, unless the person has no more use for it.
function tellElsewhere() {
  if (!elsewhere.length) return;
  const forget = () => { elsewhere = []; remember(); refresh(); };
  say(`${many(elsewhere.length, "decision")} of images that are not on this page will be saved along.`, forget, "Forget", "Forgotten.");
}

recall();
remember(); // or find out that the browser forbids it
makeFilters();
filter();
tellElsewhere();
document.addEventListener("DOMContentLoaded", arrive);
if (document.readyState !== "loading") arrive();
else {
  const waiting = setInterval(() => (document.readyState === "loading" ? arrive() : clearInterval(waiting)), 200);
}
