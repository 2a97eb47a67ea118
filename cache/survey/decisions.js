// The page of a survey: shows suspects, takes decisions, remembers and saves them.
// Before it: the data and pictures that page.py wrote around it. After it: decisions.csv, which `pack` replays.
// Names come from strangers: they are only ever set as text, never as markup.
"use strict";

const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const { items, classes, suspects } = data;
const COLUMNS = ["sha256", "path", "class", "decision", "to", "reason", "by", "causes"];
const [SHA256, PATH, CLASS, DECISION, TO, REASON, BY, CAUSES] = COLUMNS.keys();
const CHOICES = ["keep", "exclude", "relabel"];
const OVERSCAN = 700; // pixels drawn above and below what is seen
const BLOCKS_HELD = 24;

const decisions = new Map(); // place of an item -> { choice, to, why, causes }; why, causes: where they are not the machine's
let elsewhere = []; // decisions that were loaded, of images that are not on this page; saved again as they came
let shown = []; // places of the items that pass the filters
let current = 0; // where in `shown` the person is
let finding = "";
let unsaved = false;
let remembers = true;
const cards = new Map(); // place -> element, of what is near the window
const grid = find("grid");

// --- text and pictures ----------------------------------------------------------------------------------------------

// A name with nothing in it that the page's own text could be mistaken for.
const plain = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, "\ufffd");
const count = (number) => number.toLocaleString("en");
const many = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// A path, which may be broken behind its marks rather than anywhere.
function path(name, text) {
  const made = element(name);
  for (const part of plain(text).split(/(?<=[/_-])/)) made.append(part, element("wbr"));
  return made;
}

const blocks = new Map(); // the pictures of the blocks that were looked at last

function block(number) {
  let pictures = blocks.get(number);
  if (!pictures) {
    const source = find(`pictures-${number}`);
    if (!source || (!source.nextElementSibling && document.readyState === "loading")) return null; // still on its way
    pictures = source.textContent.split("\n");
  }
  blocks.delete(number);
  blocks.set(number, pictures);
  if (blocks.size > BLOCKS_HELD) blocks.delete(blocks.keys().next().value);
  return pictures;
}

function figure(number, description, caption) {
  const made = element("figure"), tile = element("div", "", "tile");
  const pictures = block(Math.floor(number / data.block));
  const encoded = pictures && pictures[number % data.block];
  const src = `data:image/jpeg;base64,${encoded}`;
  if (encoded) tile.append(Object.assign(new Image(), { decoding: "async", alt: description, src }));
  else tile.append(element("span", pictures ? "no picture" : ""));
  made.append(tile, ...(caption ? [element("figcaption", caption)] : []));
  return made;
}

// --- decisions ------------------------------------------------------------------------------------------------------

// What is to be done with an item, in words: a person's decision, or else the machine's verdict.
function standing(place) {
  const decision = decisions.get(place);
  if (!decision) return { by: "machine", choice: items[place].verdict, text: `machine: ${items[place].verdict}` };
  const to = decision.choice === "relabel" ? ` → ${plain(decision.to)}` : "";
  return { by: "person", choice: decision.choice, text: `✓ ${decision.choice}${to}` };
}

function decide(changes, message) {
  const before = changes.map(([place]) => [place, decisions.get(place)]);
  put(changes);
  say(message, () => put(before));
}

function put(changes) {
  for (const [place, decision] of changes) {
    if (decision) decisions.set(place, decision);
    else decisions.delete(place);
  }
  unsaved = true;
  remember();
  refresh();
}

const LOST = ["undecodable", "truncated", "bomb"]; // no decision makes training read these

function choose(place, choice, to = "") {
  const lost = choice !== "exclude" && items[place].findings.find((name) => LOST.includes(name));
  decide([[place, { choice, to }]], lost ? `Noted, but pack leaves it out all the same: ${lost}.` : "");
}

// Of two equal images, keep this one; or the other.
function swap(place, other = false) {
  const { twin, findings } = items[place];
  if (twin === undefined) return;
  const [kept, left] = other ? [twin, place] : [place, twin];
  const cause = findings.find((name) => name.endsWith("-duplicate"));
  const instead = { choice: "exclude", to: "", why: `${cause}: ${items[kept].path} is kept instead`, causes: cause };
  decide([[kept, { choice: "keep", to: "" }], [left, instead]], `${plain(items[left].path)} is excluded instead.`);
}

// What is shown and undecided, with the halves of pairs that are listed once.
function undecided() {
  const halves = (place) => (items[items[place].twin]?.findings ? [place, items[place].twin] : [place]);
  return [...new Set(shown.flatMap(halves))].filter((place) => !decisions.has(place));
}

const excludedOf = (places) => places.filter((place) => items[place].verdict === "exclude").length;

function acceptShown() {
  const open = undecided(), excluded = excludedOf(open);
  const changes = open.map((place) => [place, { choice: items[place].verdict, to: "" }]);
  if (!open.length) return say("All that is shown is decided already.");
  decide(changes, `Accepted: ${count(excluded)} excluded, ${count(open.length - excluded)} kept.`);
}

// --- remembering ----------------------------------------------------------------------------------------------------

// One place for a folder, whichever of its images a survey shows: what is kept there are rows, told by content and path.
const KEY = `greyhound-survey-${data.key}`;

// A reason to keep is of no use later, and a browser's memory is small.
const short = (row) => (row[DECISION] === "keep" ? row.with(REASON, "") : row);

function remember() {
  try {
    localStorage.setItem(KEY, JSON.stringify([...said().map(short), ...elsewhere]));
    remembers = true;
  } catch {
    remembers = false; // a browser may forbid it, to a page that was opened from a file above all
  }
  find("forgetful").hidden = remembers;
}

function recall() {
  try {
    const { found, missing } = match(JSON.parse(localStorage.getItem(KEY)) || []);
    decisions.clear();
    for (const [place, row] of found) if (row[BY] === "person") decisions.set(place, taken(place, row));
    elsewhere = missing;
  } catch {
    remembers = false; // `remember` says so
  }
}

// --- decisions.csv --------------------------------------------------------------------------------------------------

const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

// Items that the machine excludes and nobody decided: they are saved with its reason, so that pack leaves out what is shown so.
const left = () => items.flatMap((item, place) => (item.verdict === "exclude" && !decisions.has(place) ? [place] : []));

function rowOf(place, choice = "", to = "", reason = "", by = "", causes = (items[place].causes || []).join(";")) {
  return [items[place].sha256 || "", items[place].path, items[place].label || "", choice, to, reason, by, causes];
}

// What a person decided, as rows, with what the machine said of each.
const said = () =>
  [...decisions].map(([place, { choice, to, why, causes }]) => rowOf(place, choice, to, why ?? items[place].reason, "person", causes));

function taken(place, row) {
  const decision = { choice: row[DECISION], to: row[DECISION] === "relabel" ? row[TO] : "" };
  const own = row[REASON] && row[REASON] !== items[place].reason;
  return own ? { ...decision, why: row[REASON], causes: row[CAUSES] } : decision;
}

function toCsv() {
  const places = new Map(items.map((item, place) => [item.path, place]));
  const unsaid = left().map((place) => rowOf(place, "exclude", "", items[place].reason || "excluded by the machine", "machine"));
  const rows = [...said(), ...unsaid].sort((one, other) => places.get(one[PATH]) - places.get(other[PATH]));
  return [COLUMNS, ...rows, ...elsewhere].map((row) => row.map(cell).join(",") + "\n").join("");
}

function parseCsv(text) {
  const rows = [];
  let row = [], value = "", quoted = false;
  for (let at = 0; at < text.length; at++) {
    const letter = text[at];
    if (quoted && letter === '"' && text[at + 1] === '"') { value += '"'; at++; }
    else if (letter === '"' && (quoted || value === "")) quoted = !quoted;
    else if (quoted) value += letter;
    else if (letter === ",") { row.push(value); value = ""; }
    else if (letter === "\n") { rows.push([...row, value]); row = []; value = ""; }
    else if (letter !== "\r" || text[at + 1] !== "\n") value += letter;
  }
  if (value || row.length) rows.push([...row, value]);
  return rows.filter((cells) => cells.length > 1 || cells[0]);
}

// The rows of a decisions.csv in the order of COLUMNS; throws with one line that says what is wrong.
function readDecisions(text) {
  const [header = [], ...rows] = parseCsv(text);
  const needed = COLUMNS.slice(0, REASON);
  const missing = needed.filter((name) => !header.includes(name));
  if (missing.length) throw new Error(`it lacks the column ${missing.join(", ")}; expected ${needed.join(", ")}`);
  const order = COLUMNS.map((name) => header.indexOf(name));
  return rows.map((cells, line) => {
    const row = order.map((at) => cells[at] || "");
    if (!CHOICES.includes(row[DECISION])) throw new Error(`row ${line + 2} says “${plain(row[DECISION])}”; expected keep, exclude or relabel`);
    if (row[DECISION] === "relabel" && !classes.includes(row[TO])) throw new Error(`row ${line + 2} relabels to “${plain(row[TO])}”, which is no class here`);
    row[BY] ||= "person";
    return row;
  });
}

const KEYS_OF_CONTENT = [
  (row) => `${row[SHA256]}\n${row[CLASS]}`,
  (row) => `${row[SHA256]}\n${row[PATH].slice(row[PATH].indexOf("/") + 1)}`,
  (row) => row[SHA256],
];

// The rule of selection.py: the file at the path if it has the content; else the first of that content that is free, in its
// class, or of its path below another class folder, or anywhere if there is but one. Place -> row, and the rows left over.
function match(rows) {
  const places = new Map(items.map((item, place) => [item.path, place]));
  const copies = Map.groupBy(items, (item) => item.sha256 || "");
  const found = new Map();
  const missing = rows.filter((row) => {
    const place = places.get(row[PATH]);
    const here = place !== undefined && (items[place].sha256 || "") === row[SHA256];
    if (here) found.set(place, row);
    return !here;
  });
  const forCopy = (row) => row[DECISION] === "exclude" && row[CAUSES].split(";")[0] === "exact-duplicate";
  let moved = missing.filter((row) => copies.get(row[SHA256])?.length > 1 || !forCopy(row));
  const sorted = [...places].sort(([one], [other]) => (one < other ? -1 : 1)).map(([, place]) => place);
  for (const key of KEYS_OF_CONTENT) {
    if (!moved.length) break;
    const lone = key === KEYS_OF_CONTENT.at(-1);
    const free = Map.groupBy(sorted.filter((place) => items[place].sha256 && !found.has(place)), (place) => key(rowOf(place)));
    const claims = Map.groupBy(moved, key);
    moved = moved.filter((row) => {
      const open = free.get(key(row)) || [];
      if (!open.length || (lone && (open.length > 1 || claims.get(key(row)).length > 1))) return true;
      found.set(open.shift(), row);
      return false;
    });
  }
  const placed = new Set(found.values());
  return { found, missing: missing.filter((row) => !placed.has(row)) };
}

function loadDecisions(text, name) {
  let rows;
  try {
    rows = readDecisions(text);
  } catch (error) {
    return say(`${plain(name)} was not loaded: ${error.message}.`);
  }
  const { found, missing } = match(rows);
  const known = new Set(missing.map((row) => `${row[SHA256]}\n${row[PATH]}`));
  elsewhere = [...elsewhere.filter((row) => !known.has(`${row[SHA256]}\n${row[PATH]}`)), ...missing];
  const decided = [...found].filter(([, row]) => row[BY] === "person");
  const changes = decided.map(([place, row]) => [place, taken(place, row)]);
  const others = missing.length ? `; ${count(missing.length)} of images that are not on this page are saved along` : "";
  decide(changes, `${many(decided.length, "decision")} loaded${others}.`);
}

function saveDecisions() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  unsaved = false;
  const also = left().length ? `, and ${count(left().length)} that the machine excludes and you left so` : "";
  say(`${many(decisions.size + elsewhere.length, "decision")} saved as decisions.csv${also}.`);
}
