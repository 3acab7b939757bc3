"use strict";
// Draws a recorded search (rain_jax/methods/recording.py) at the frame that the slider names. Text from
// the model only ever enters through textContent and setAttribute.

const recording = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const COLUMN = 316, ROW = 42, WIDTH = 282, HEIGHT = 34, MARGIN = 16;

const children = recording.nodes.map(() => []);
recording.nodes.forEach((node, i) => { if (node.parent >= 0) children[node.parent].push(i); });
const folds = new Map(); // what the user folded (false) or unfolded (true)
let selected = null;

// Control characters, and those that turn the writing round, become visible.
function visible(text) {
  return text.replace(/\n/g, "⏎").replace(/[\p{C}\u2028\u2029]/gu,
    (c) => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
}

// The beginning of a text; East Asian characters and pictures are as wide as two others.
function shortened(text, length) {
  const kept = [];
  for (const character of visible(text)) {
    length -= character.codePointAt(0) >= 0x1100 ? 2 : 1;
    if (length < 0) return kept.slice(0, -1).join("") + "…";
    kept.push(character);
  }
  return kept.join("");
}

// The end of a text, which is where two paths differ.
function ending(text, length) {
  const characters = Array.from(visible(text));
  return (characters.length <= length ? "" : "…") + characters.slice(-length).join("");
}

function pathTo(node) {
  const path = [];
  for (let i = node; i >= 0; i = recording.nodes[i].parent) path.unshift(i);
  return path;
}

const textOf = (path) => path.map((i) => recording.nodes[i].text).join("");
const signed = (x, digits) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);

// Everything that is known after a frame.
function replay(last) {
  const numbers = new Map(), verdicts = new Map(), similar = new Map();
  const state = { numbers, verdicts, similar, root: 0, trial: "", rewound: "", visited: new Set() };
  for (let t = 0; t <= last; t++) {
    const frame = recording.frames[t], before = state.trial;
    state.rewound = "";
    state.visited = new Set();
    for (const [node, weight, visits, value, prior] of frame.changed) {
      numbers.set(node, { weight, visits, value, prior });
    }
    for (const [a, b, s] of frame.similar) similar.set(a + "," + b, { a, b, s, now: t === last });
    for (const visit of frame.visits) {
      verdicts.set(visit.node, visit.verdict);
      pathTo(visit.node).forEach((i) => state.visited.add(i));
      const path = pathTo(visit.node);
      state.trial = textOf(path.slice(path.indexOf(state.root) + 1)) + visit.rollout;
    }
    if (frame.kind === "rewind") {
      state.rewound = textOf(pathTo(frame.rewound).slice(pathTo(frame.node).length)) + before;
      state.root = frame.node;
      state.trial = "";
    } else if (frame.kind === "commit") {
      state.root = frame.node;
      const text = recording.nodes[frame.node].text;
      state.trial = before.startsWith(text) ? before.slice(text.length) : "";
    }
    if (frame.rewound !== null && frame.kind !== "rewind") {
      let same = 0;
      const now = frame.kind === "commit" ? recording.nodes[frame.node].text : state.trial;
      while (same < before.length && before[same] === now[same]) same++;
      state.rewound = before.slice(same);
    }
  }
  return state;
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Places of the nodes that can be seen: parents between their first and last child.
function layout(last, state) {
  const places = new Map(), showDiscarded = byId("discarded").checked;
  const dead = (i) => recording.nodes[i].died !== null && recording.nodes[i].died <= last;
  const committed = (i) => i === 0 ||
    (recording.nodes[i].committed !== null && recording.nodes[i].committed <= last && !dead(i));
  const shown = (i) => children[i].filter((c) => recording.nodes[c].born <= last && (showDiscarded || !dead(c)));
  const open = (i) => folds.has(i) ? folds.get(i) : committed(i) || state.visited.has(i);
  let row = 0;
  const stack = [[0, 0, false]];
  while (stack.length) {
    const [i, depth, done] = stack.pop();
    const below = shown(i), unfolded = below.length > 0 && open(i);
    if (!done && unfolded) {
      stack.push([i, depth, true]);
      for (let k = below.length - 1; k >= 0; k--) stack.push([below[k], depth + 1, false]);
      continue;
    }
    const y = unfolded ? (places.get(below[0]).y + places.get(below[below.length - 1]).y) / 2 : row++ * ROW;
    places.set(i, { x: depth * COLUMN, y, hidden: unfolded ? 0 : below.length, unfolded,
      dead: dead(i), committed: committed(i), below: unfolded ? below : [] });
  }
  return places;
}

function drawNode(i, place, state) {
  const node = recording.nodes[i];
  const { weight, visits, value, prior } =
    state.numbers.get(i) || { weight: 0, visits: 0, value: 0, prior: 0 };
  const names = ["node"];
  if (place.dead) names.push("dead");
  if (place.committed) names.push("committed");
  if (state.visited.has(i)) names.push("visited");
  const group = svg("g", {
    class: names.join(" "), tabindex: 0, role: "treeitem",
    transform: `translate(${place.x + MARGIN},${place.y + MARGIN})`,
    "data-node": i, "data-parent": node.parent, "data-depth": node.depth,
    "data-visit-weight": weight, "data-visits": visits, "data-value": value, "data-prior": prior,
  });
  if (place.unfolded || place.hidden) group.setAttribute("aria-expanded", String(place.unfolded));
  if (state.verdicts.has(i)) group.setAttribute("data-verdict", state.verdicts.get(i));
  group.append(svg("rect", { width: WIDTH, height: HEIGHT, rx: 5 }));
  if (weight > 0) {
    const mood = value > 0.33 ? "good" : value < -0.33 ? "bad" : "mixed";
    group.append(svg("rect", { class: "mark " + mood, width: 5, height: HEIGHT, rx: 2 }));
  }
  const text = i === 0 ? "(start)" : shortened(node.text, 33) || "(nothing)";
  group.append(svg("text", { class: "text", x: 10, y: 14 }, text));
  const verdict = state.verdicts.has(i) ? ", verdict " + signed(state.verdicts.get(i), 0) : "";
  const numbers =
    `visits ${weight.toFixed(1)}, value ${signed(value, 2)}, prior ${prior.toFixed(2)}${verdict}`;
  group.append(svg("text", { class: "numbers", x: 10, y: 28 }, numbers));
  if (place.hidden) group.append(svg("text", { class: "fold", x: WIDTH + 4, y: 22 }, "+" + place.hidden));
  group.append(svg("title", {}, visible(node.text)));
  group.addEventListener("click", () => toggle(i, place));
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(i, place); }
  });
  return group;
}

function toggle(i, place) {
  if (place.unfolded || place.hidden) folds.set(i, !place.unfolded);
  selected = i;
  draw(false);
  const again = document.querySelector(`[data-node="${i}"]`);
  if (again) again.focus({ preventScroll: true });
}

function drawTree(last, state) {
  const places = layout(last, state), edges = [], nodes = [];
  let width = 0, height = 0;
  for (const [i, place] of places) {
    width = Math.max(width, place.x);
    height = Math.max(height, place.y);
    nodes.push(drawNode(i, place, state));
    for (const c of place.below) {
      const to = places.get(c);
      const x1 = place.x + WIDTH + MARGIN, y1 = place.y + HEIGHT / 2 + MARGIN;
      const x2 = to.x + MARGIN, y2 = to.y + HEIGHT / 2 + MARGIN;
      edges.push(svg("path", { class: to.committed ? "edge committed" : "edge",
        d: `M${x1},${y1}C${x1 + 18},${y1} ${x2 - 18},${y2} ${x2},${y2}` }));
    }
  }
  for (const { a, b, s, now } of state.similar.values()) {
    const from = places.get(a), to = places.get(b);
    if (!from || !to) continue;
    const x = from.x + MARGIN, y1 = from.y + HEIGHT / 2 + MARGIN, y2 = to.y + HEIGHT / 2 + MARGIN;
    const arc = svg("path", { class: now ? "similar now" : "similar", "data-a": a, "data-b": b,
      "data-similarity": s, d: `M${x},${y1}C${x - 26},${y1} ${x - 26},${y2} ${x},${y2}` });
    arc.append(svg("title", {}, "similarity " + s.toFixed(4)));
    edges.push(arc);
  }
  const picture = byId("tree");
  picture.setAttribute("width", width + WIDTH + 3 * MARGIN + 24);
  picture.setAttribute("height", height + HEIGHT + 2 * MARGIN);
  picture.replaceChildren(...edges, ...nodes);
  return places;
}

function told(last, state) {
  const frame = recording.frames[last];
  const quote = (i) => "“" + (ending(textOf(pathTo(i)), 60) || "(start)") + "”";
  if (frame.kind === "end") return "Nothing is left to commit; the response ends.";
  if (frame.kind === "rewind") {
    const path = pathTo(frame.rewound).slice(pathTo(frame.node).length);
    return `Step ${frame.step + 1}: rewind, took back “${shortened(textOf(path), 60)}”: nothing good came after it.`;
  }
  if (frame.kind === "draft") {
    const [visit] = frame.visits;
    const draft = visit ? `“${shortened(visit.rollout, 60)}”, verdict ${signed(visit.verdict, 2)}` :
      "nothing that was not taken back before";
    return `Step ${frame.step + 1}: draft, the best ${draft}.`;
  }
  if (frame.kind === "commit") {
    const gone = recording.nodes.filter((node) => node.died === last).length;
    const why = { trusted: "visited and good enough", limit: "iterations ran out",
      room: "no room for another iteration", inherited: "trusted already", draft: "a good draft" }[frame.reason];
    return `Committed “${shortened(recording.nodes[frame.node].text, 60)}” (${why}); ${gone} token sets discarded.`;
  }
  const parts = frame.visits.map((visit) =>
    `visited ${quote(visit.node)}, rolled out “${shortened(visit.rollout, 60)}”, verdict ${signed(visit.verdict, 2)}`);
  frame.grown.forEach((i) => parts.push(`${quote(i)} grew: all it had was alike and bad`));
  if (frame.rewound !== null) parts.unshift("went back from " + quote(frame.rewound));
  return `Step ${frame.step + 1}: ` + (parts.join("; ") || "nothing to do") + ".";
}

function describe(i, state) {
  const node = recording.nodes[i], numbers = state.numbers.get(i);
  const lines = [visible(node.text), `tokens ${node.tokens.join(" ")}`, `ends: ${node.finish}`];
  if (numbers) {
    lines.push(`visits ${numbers.visits}, visit weight ${numbers.weight}, value ${numbers.value}, prior ${numbers.prior}`);
  }
  byId("node").textContent = lines.join("\n");
}

function draw(follow) {
  const begun = performance.now(), last = Number(byId("slider").value);
  if (!recording.frames.length) return;
  const state = replay(last), places = drawTree(last, state);
  byId("place").textContent = `${last + 1} / ${recording.frames.length}`;
  byId("happened").textContent = told(last, state);
  byId("final").textContent = visible(textOf(pathTo(state.root)));
  byId("trial").textContent = visible(state.trial);
  byId("rewound").textContent = visible(state.rewound);
  if (selected !== null) describe(selected, state);
  if (follow) {
    const frame = recording.frames[last], view = byId("view");
    const at = places.get(frame.visits.length ? frame.visits[0].node : state.root);
    if (at) view.scrollTo(at.x - view.clientWidth / 2, at.y - view.clientHeight / 2);
  }
  byId("tree").getBoundingClientRect(); // layout is part of the time
  document.documentElement.dataset.frame = last;
  document.documentElement.dataset.milliseconds = performance.now() - begun;
}

function foldAll(open) {
  folds.clear();
  if (open) recording.nodes.forEach((_, i) => folds.set(i, true));
  draw(false);
}

byId("prompt").textContent = visible(recording.prompt);
byId("response").textContent = visible(recording.response);
byId("outcome").textContent = `aligned with ${visible(recording.preference)}, ended by ${recording.finish}` +
  (recording.verdict === null ? "" : `, verdict on the whole ${signed(recording.verdict, 0)}`);
for (const name in recording.counters) {
  const row = document.createElement("div"), term = document.createElement("dt");
  const value = document.createElement("dd");
  term.textContent = name.replaceAll("_", " ");
  value.textContent = recording.counters[name];
  row.append(term, value);
  byId("counters").append(row);
}
byId("slider").max = Math.max(0, recording.frames.length - 1);
byId("slider").value = byId("slider").max;
byId("slider").addEventListener("input", () => draw(true));
byId("discarded").addEventListener("change", () => draw(false));
byId("unfold").addEventListener("click", () => foldAll(true));
byId("fold").addEventListener("click", () => foldAll(false));
draw(true);
document.documentElement.dataset.opened = performance.now(); // since the page was asked for
