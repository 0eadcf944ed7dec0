"use strict";
// Strangers' text is only ever set as text, never as HTML.

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let state = null;      // what the server said last
let chosen = null;     // threshold that a person moved to; null follows the best
let busy = false;
let blinking = null;

const percent = (v) => (100 * v).toFixed(v > 0.9995 || v === 0 ? 0 : 1) + "%";
const url = (side, pair) =>
  `picture?side=${side}&pair=${pair}&dataset=${encodeURIComponent(state.dataset)}`;

function element(name, attributes = {}, text = null) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function drawn(name, attributes, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

async function ask(path, body = null) {
  if (busy) return;
  busy = true;
  try {
    const options = body === null ? {} : {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
    };
    const response = await fetch(path, options);
    const values = await response.json();
    if (!response.ok) throw new Error(values.problem);
    state = values;
    show();
  } catch (error) {
    trouble([error.message === "Failed to fetch"
      ? "the server does not answer: start `wit dedup review` again, nothing is lost" : error.message]);
  } finally {
    busy = false;
  }
}

function trouble(problems) {
  at("problem").hidden = problems.length === 0;
  at("problem").textContent = problems.join(" · ");
}

function show() {
  trouble(state.problems);
  at("dataset").textContent = state.dataset;
  document.title = `${state.dataset} · near-duplicate review`;
  showDatasets();
  showProgress();
  showPair();
  showResult();
  for (const {side, pair} of state.ahead) new Image().src = url(side, pair);
}

function showDatasets() {
  at("datasets").replaceChildren(...state.datasets.map((one) => {
    const mark = one.saved === null ? "" : " ✓";
    const made = element("option", {value: one.name}, `${one.name} – ${one.labels} labels${mark}`);
    made.selected = one.name === state.dataset;
    return made;
  }));
}

function showProgress() {
  const {same, different, skip} = state.counts;
  const done = same + different;
  const text = element("div");
  text.append(element("b", {}, `${done}`), ` of about ${state.enough} labels · ${same} same, ${different} different`
    + (skip ? `, ${skip} skipped` : ""));
  const meter = element("div", {class: "meter"});
  const bar = drawn("svg", {viewBox: "0 0 100 6", preserveAspectRatio: "none"});
  bar.append(drawn("rect", {x: 0, y: 0, height: 6, width: Math.min(100, 100 * done / state.enough)}));
  meter.append(bar);
  at("progress").replaceChildren(text, meter);
}

function showPair() {
  const pair = state.pair;
  for (const id of ["same", "different", "skip", "blink"]) at(id).disabled = pair === null;
  const {same, different, skip} = state.counts;
  at("undo").disabled = same + different + skip === 0;
  for (const side of ["eval", "train"]) {
    at(side).replaceChildren();
    at(`${side}-facts`).replaceChildren();
  }
  if (pair === null) {
    at("question").textContent = "Every pair that could be asked about has its answer.";
    at("similarity").replaceChildren();
    stopBlinking();
    return;
  }
  at("question").textContent = "Is the right picture a copy of the left one?";
  at("similarity").replaceChildren("similarity ", element("b", {}, pair.similarity.toFixed(4)));
  for (const side of ["eval", "train"]) {
    const {facts, problem} = pair[side];
    at(side).append(problem === null
      ? element("img", {src: url(side, pair.index), alt: `${side} picture`}) : element("p", {}, problem));
    for (const [name, text] of facts) at(`${side}-facts`).append(element("dt", {}, name), element("dd", {title: text}, text));
  }
  if (blinking !== null) layOver();
}

function layOver() {
  // The training picture over the evaluation picture, at the same place and size: differences jump.
  const below = at("eval").querySelector("img");
  if (below === null || state.pair === null || state.pair.train.problem !== null) return stopBlinking();
  const over = element("img", {src: url("train", state.pair.index), class: "over", alt: "training picture"});
  const fit = () => {
    const box = at("eval").getBoundingClientRect(), room = {x: box.width - 18, y: box.height - 18};
    const scale = Math.min(room.x / below.naturalWidth, room.y / below.naturalHeight);
    for (const one of [below, over]) {
      one.style.width = `${Math.round(below.naturalWidth * scale)}px`;
      one.style.height = `${Math.round(below.naturalHeight * scale)}px`;
    }
  };
  if (below.complete) fit(); else below.addEventListener("load", fit);
  at("eval").append(over, element("span", {class: "which", id: "which"}, "evaluation picture"));
}

function toggleBlinking() {
  if (blinking !== null) return stopBlinking();
  at("pair").classList.add("blinking");
  at("blink").setAttribute("aria-pressed", "true");
  blinking = setInterval(() => {
    const second = at("pair").classList.toggle("second");
    if (at("which")) at("which").textContent = second ? "training picture" : "evaluation picture";
  }, 450);
  layOver();
}

function stopBlinking() {
  if (blinking === null) return;
  clearInterval(blinking);
  blinking = null;
  at("pair").classList.remove("blinking", "second");
  at("blink").setAttribute("aria-pressed", "false");
  if (state.pair !== null) showPair();
}

function point() {
  return chosen === null ? state.best : state.curve[nearest(chosen)];
}

function tile(value, label, interval = null) {
  const made = element("div");
  made.append(element("b", {}, value), element("small", {}, label));
  if (interval) made.append(element("small", {}, `${percent(interval[1])} to ${percent(interval[2])}`));
  return made;
}

function showResult() {
  const now = point();
  const told = (v) => v === null ? "–" : percent(v[0]);
  at("tiles").replaceChildren(
    tile(told(now.precision), "precision", now.precision), tile(told(now.recall), "recall", now.recall),
    tile(now.threshold.toFixed(4), chosen === null ? "best threshold so far" : "your threshold"),
    tile(now.found.toLocaleString("en"), "pictures in the overlap"));
  at("value").textContent = now.threshold.toFixed(4);
  const slider = at("slider"), last = state.curve.length - 1;
  slider.max = last;
  // The right end is the highest threshold, as on the chart.
  slider.value = last - nearest(now.threshold);
  const {saved} = state.datasets.find((one) => one.name === state.dataset);
  at("saved").classList.toggle("good", saved !== null);
  at("saved").textContent = saved === null ? "No threshold saved for this data set yet." : `Saved: ${saved.toFixed(4)}`;
  at("method").textContent = `Intervals hold the true value with 90% probability under a logistic curve fitted to the `
    + `labels; the best threshold keeps precision at ${percent(state.wanted)} or more where it can, then finds the most. `
    + `Detector's own threshold: ${state.working.threshold.toFixed(4)}.`;
  showChart(now);
}

function nearest(threshold) {
  let best = 0;
  state.curve.forEach((one, i) => {
    if (Math.abs(one.threshold - threshold) < Math.abs(state.curve[best].threshold - threshold)) best = i;
  });
  return best;
}

function showChart(now) {
  const width = 430, height = 250, left = 42, right = 10, top = 12, bottom = 54;
  const all = state.curve.map((one) => one.threshold);
  const low = Math.min(...all, now.threshold), high = Math.max(...all, now.threshold, low + 1e-3);
  const x = (v) => left + (width - left - right) * (v - low) / (high - low);
  const y = (v) => height - bottom - (height - top - bottom) * v;
  const made = drawn("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "precision and recall by threshold"});
  for (const v of [0, 0.25, 0.5, 0.75, 1]) {
    made.append(drawn("path", {class: "grid", d: `M${left} ${y(v)}H${width - right}`}),
      drawn("text", {x: left - 6, y: y(v) + 4, "text-anchor": "end"}, percent(v).replace(".0", "")));
  }
  for (let i = 0; i <= 4; i++) {
    const v = low + (high - low) * i / 4;
    made.append(drawn("text", {x: x(v), y: height - bottom + 31, "text-anchor": i === 0 ? "start" : i === 4 ? "end" : "middle"},
      v.toFixed(3)));
  }
  [["precision", "--c1", ""], ["recall", "--c2", "7 4"]].forEach(([name, colour, dash]) => {
    const points = state.curve.filter((one) => one[name] !== null);
    const path = (k, list) => list.map((one) => `${x(one.threshold).toFixed(1)} ${y(one[name][k]).toFixed(1)}`).join("L");
    const band = drawn("path", {class: "band", d: `M${path(1, points)}L${path(2, [...points].reverse())}Z`});
    band.style.fill = `var(${colour})`;
    const line = drawn("path", {class: "curve", d: `M${path(0, points)}`});
    line.style.stroke = `var(${colour})`;
    line.style.strokeDasharray = dash;
    made.append(band, line);
  });
  for (const one of state.asked) {
    if (one.answer === "skip" || one.similarity < low || one.similarity > high) continue;
    const same = one.answer === "same", base = height - bottom + (same ? 3 : 9);
    const mark = drawn("path", {class: "rug", d: `M${x(one.similarity).toFixed(1)} ${base}v5`});
    mark.style.stroke = `var(${same ? "--c3" : "--c2"})`;
    made.append(mark);
  }
  const here = x(now.threshold), end = here > width / 2;
  made.append(drawn("path", {class: "marker", d: `M${here} ${top}V${height - bottom}`}),
    drawn("text", {class: "on-marker", x: here + (end ? -5 : 5), y: height - bottom - 8, "text-anchor": end ? "end" : "start"},
      now.threshold.toFixed(4)),
    drawn("text", {x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle"}, "threshold on similarity"));
  at("chart").replaceChildren(made);
  showLegend();
}

function showLegend() {
  const entries = [["precision", "--c1", "M1 5H23", ""], ["recall", "--c2", "M1 5H23", "7 4"],
    ["labelled same", "--c3", "M12 1v8", ""], ["labelled different", "--c2", "M12 1v8", ""]];
  at("legend").replaceChildren(...entries.map(([name, colour, d, dash]) => {
    const made = element("span"), mark = drawn("svg", {viewBox: "0 0 24 10"});
    const line = drawn("path", {class: "curve", d});
    line.style.stroke = `var(${colour})`;
    line.style.strokeDasharray = dash;
    line.style.strokeWidth = 2;
    line.style.fill = "none";
    mark.append(line);
    made.append(mark, name);
    return made;
  }));
}

const answer = (word) => {
  if (state && state.pair) ask("label", {dataset: state.dataset, pair: state.pair.index, answer: word});
};
const undo = () => state && !at("undo").disabled && ask("undo", {dataset: state.dataset});
const save = () => state && ask("threshold", {dataset: state.dataset, threshold: point().threshold});
const reset = () => { chosen = null; if (state) showResult(); };

const KEYS = {
  s: () => answer("same"), d: () => answer("different"), " ": () => answer("skip"), k: () => answer("skip"),
  u: undo, Backspace: undo, b: () => state && state.pair && toggleBlinking(), Enter: save, r: reset,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const within = event.target.tagName;
  if (within === "SELECT" || (within === "BUTTON" && (event.key === "Enter" || event.key === " "))) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (act === undefined) return;
  event.preventDefault();
  act();
});

for (const word of ["same", "different", "skip"]) at(word).addEventListener("click", () => answer(word));
at("undo").addEventListener("click", undo);
at("blink").addEventListener("click", toggleBlinking);
at("save").addEventListener("click", save);
at("reset").addEventListener("click", reset);
at("slider").addEventListener("input", (event) => {
  chosen = state.curve[state.curve.length - 1 - Number(event.target.value)].threshold;
  showResult();
});
at("datasets").addEventListener("change", (event) => {
  chosen = null;
  event.target.blur();
  ask(`state?dataset=${encodeURIComponent(event.target.value)}`);
});
// After a click the keys must go on working: a focused button would swallow Space and Enter.
document.addEventListener("click", (event) => event.target.closest("button")?.blur());
ask("state");
