"use strict";
// The two charts of the report, on d3: the trials as a scatter of two metrics, and one trial's readings as strips.
// Every text goes in as textContent (d3's .text), since names in a study are not to be trusted.

const SHAPES = [d3.symbolCircle, d3.symbolSquare, d3.symbolTriangle, d3.symbolDiamond2, d3.symbolCross, d3.symbolWye];

/** An element with properties and children; a string child is text. */
function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

/** Which shape and colour each backend has: the same everywhere in a study. */
function backendStyle(view) {
  const names = [...new Set(view.trials.filter((t) => t.status === "ok").map((t) => t.backend))].sort();
  const at = (name) => Math.max(0, names.indexOf(name));
  return { names, shape: (name) => SHAPES[at(name) % SHAPES.length], css: (name) => `series s${at(name) % 6}` };
}

/** The glyph of a backend, for legends. */
function glyph(style, name) {
  const svg = d3.create("svg").attr("viewBox", "-7 -7 14 14").attr("width", 12).attr("height", 12);
  svg.attr("aria-hidden", "true").append("path").attr("d", d3.symbol(style.shape(name), 64)()).attr("class", `${style.css(name)} met`);
  return svg.node();
}

/** The points that no other point beats in both metrics, in the order of x. */
function frontOf(points, better) {
  const sign = { x: better.x === "lower" ? 1 : -1, y: better.y === "lower" ? 1 : -1 };
  const order = [...points].sort((a, b) => sign.x * (a.x - b.x) || sign.y * (a.y - b.y));
  let bar = Infinity;
  const kept = order.filter((p) => sign.y * p.y < bar && ((bar = sign.y * p.y), true));
  return kept.sort((a, b) => a.x - b.x);
}

/** The trials that have both metrics, in display units. */
function pointsOf(view, names) {
  const scaled = (metric, axis) => ({ at: metric.value * axis.factor, lo: (metric.lo ?? metric.value) * axis.factor, hi: (metric.hi ?? metric.value) * axis.factor });
  return view.trials.flatMap((trial) => {
    const [mx, my] = names.map((name) => trial.metrics[name]);
    if (trial.status !== "ok" || mx?.value == null || my?.value == null) return [];
    const x = scaled(mx, view.axes[names[0]]), y = scaled(my, view.axes[names[1]]);
    return [{ trial, x: x.at, y: y.at, xs: x, ys: y }];
  });
}

/** A scale over values, intervals and limits, with air around them. */
function scaleOf(spans, limits, log, range) {
  const ends = [...spans.flatMap((s) => [s.lo, s.hi, s.at]), ...limits.map((l) => l.at)].filter((v) => !log || v > 0);
  let [low, high] = d3.extent(ends);
  if (low === undefined) [low, high] = [log ? 0.1 : 0, 1];
  if (log) return d3.scaleLog([low / 1.15, high * 1.15], range).clamp(true);
  const air = (high - low || Math.abs(high) || 1) * 0.07;
  return d3.scaleLinear([low >= 0 ? Math.max(0, low - air) : low - air, high + air], range).clamp(true);
}

/**
 * The scatter of two metrics. `on.pick(id)` is called for a clicked point, `on.box(ids or null)` for a drawn box.
 * Returns {select(id), dim(ids)}.
 */
function scatterChart(host, view, on) {
  const style = backendStyle(view);
  const state = { names: [...view.start], log: [false, false], selected: null, shown: null, box: null };
  let eraseBox = () => {};
  const controls = el("div", { className: "controls" });
  const stage = el("div", { className: "stage" });
  const tip = el("div", { className: "tip", hidden: true });
  const legend = el("ul", { className: "legend" });
  host.append(controls, stage, legend);
  stage.append(tip);
  const canLog = (i) => pointsOf(view, state.names).every((p) => (i ? p.y : p.x) > 0);
  const spread = (i) => { const v = pointsOf(view, state.names).map((p) => (i ? p.y : p.x)); return d3.max(v) / d3.min(v); };
  const boxes = ["x", "y"].map((letter, i) => axisControl(letter, i));
  for (const name of style.names) legend.append(el("li", {}, glyph(style, name), name));
  legend.append(el("li", { className: "note" }, "filled: meets every limit · hollow: does not · ★ best · line: front of these two metrics · bars: 95% interval"));
  const hint = el("p", { className: "hint" }, "Drag a box to filter the table; click a point for its details, arrow keys step through them.");
  const clear = el("button", { type: "button", className: "quiet", hidden: true, onclick: () => boxed(null) }, "clear box");
  controls.append(clear);
  host.append(hint);
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.addEventListener("keydown", step);

  function axisControl(letter, i) {
    const options = Object.entries(view.axes).map(([name, axis]) => el("option", { value: name, selected: name === state.names[i] }, axis.title));
    const select = el("select", { onchange: () => { state.names[i] = select.value; reset(i); } }, ...options);
    const log = el("input", { type: "checkbox", onchange: () => { state.log[i] = log.checked; draw(); } });
    controls.append(el("label", {}, `${letter} `, select), el("label", { className: "check" }, log, ` log ${letter}`));
    select.dataset.axis = log.dataset.log = letter;
    return log;
  }

  function reset(i) {
    state.log[i] = canLog(i) && spread(i) > 12;
    boxed(null);
    draw();
  }

  function boxed(ids) {
    state.box = ids;
    clear.hidden = ids === null;
    on.box(ids);
    if (ids === null) eraseBox();
  }

  function step(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const order = pointsOf(view, state.names).sort((a, b) => a.x - b.x).map((p) => p.trial.id);
    const at = order.indexOf(state.selected);
    if (order.length) on.pick(order[at < 0 ? 0 : (at + move + order.length) % order.length]);
  }

  function draw() {
    boxes.forEach((box, i) => { box.disabled = !canLog(i); state.log[i] &&= !box.disabled; box.checked = state.log[i]; });
    const axes = state.names.map((name) => view.axes[name]);
    const points = pointsOf(view, state.names);
    const width = Math.max(260, stage.clientWidth), height = Math.round(Math.min(440, Math.max(270, width * 0.58)));
    const edge = { top: 14, right: 16, bottom: 42, left: 56 };
    const x = scaleOf(points.map((p) => p.xs), axes[0].limits, state.log[0], [edge.left, width - edge.right]);
    const y = scaleOf(points.map((p) => p.ys), axes[1].limits, state.log[1], [height - edge.bottom, edge.top]);
    stage.setAttribute("aria-label", `${points.length} trials by ${axes[0].title} and ${axes[1].title}`);
    d3.select(stage).selectAll("svg").remove();
    const svg = d3.select(stage).insert("svg", ".tip").attr("viewBox", `0 0 ${width} ${height}`).attr("width", width).attr("height", height);
    drawAxes(svg, { x, y, axes, width, height, edge });
    drawLimits(svg, { x, y, axes, width, height, edge });
    drawBrush(svg, { x, y, points, width, height, edge });
    const steps = d3.line((p) => x(p.x), (p) => y(p.y)).curve(axes[0].better === "lower" ? d3.curveStepAfter : d3.curveStepBefore);
    svg.append("path").attr("class", "front").attr("d", steps(frontOf(points, { x: axes[0].better, y: axes[1].better })));
    drawPoints(svg, points, x, y);
    mark();
  }

  function drawBrush(svg, { x, y, points, width, height, edge }) {
    const inside = ([[x0, y0], [x1, y1]]) => points.filter((p) => x(p.x) >= x0 && x(p.x) <= x1 && y(p.y) >= y0 && y(p.y) <= y1);
    const brush = d3.brush().extent([[edge.left, edge.top], [width - edge.right, height - edge.bottom]]).touchable(false);
    brush.on("end", (event) => event.sourceEvent && boxed(event.selection && inside(event.selection).map((p) => p.trial.id)));
    const group = svg.append("g").attr("class", "brush").call(brush);
    eraseBox = () => brush.clear(group);
  }

  function drawPoints(svg, points, x, y) {
    const order = { baseline: 1, closest: 2, best: 2 };
    const marks = svg.append("g").selectAll("g").data([...points].sort((a, b) => (order[a.trial.role] ?? 0) - (order[b.trial.role] ?? 0))).join("g");
    marks.attr("class", (p) => `point ${style.css(p.trial.backend)} ${p.trial.met ? "met" : "unmet"} ${p.trial.role}`).attr("data-trial", (p) => p.trial.id);
    marks.append("line").attr("class", "error").attr("x1", (p) => x(p.xs.lo)).attr("x2", (p) => x(p.xs.hi)).attr("y1", (p) => y(p.y)).attr("y2", (p) => y(p.y));
    marks.append("line").attr("class", "error").attr("y1", (p) => y(p.ys.lo)).attr("y2", (p) => y(p.ys.hi)).attr("x1", (p) => x(p.x)).attr("x2", (p) => x(p.x));
    const at = (p) => `translate(${x(p.x)},${y(p.y)})`;
    const star = (p) => p.trial.role === "best" || p.trial.role === "closest";
    marks.append("circle").attr("class", "ring").attr("r", 13).attr("transform", at);
    marks.append("path").attr("class", "dot").attr("transform", at).attr("d", (p) => d3.symbol(star(p) ? d3.symbolStar : style.shape(p.trial.backend), star(p) ? 200 : 70)());
    marks.filter((p) => p.trial.role).append("text").attr("x", (p) => x(p.x) + (nearRight(x, p) ? -13 : 13)).attr("y", (p) => y(p.y) - 9).attr("text-anchor", (p) => (nearRight(x, p) ? "end" : "start")).text((p) => p.trial.role);
    marks.append("circle").attr("class", "target").attr("r", 12).attr("transform", at)
      .on("click", (_, p) => on.pick(p.trial.id)).on("pointerenter", (_, p) => hover(p, x(p.x), y(p.y))).on("pointerleave", () => { tip.hidden = true; });
  }

  function nearRight(x, p) { return x(p.x) > x.range()[1] - 80; }

  function hover(p, left, top) {
    const rows = Object.entries(p.trial.metrics).slice(0, 8).map(([name, m]) => el("div", {}, el("dt", {}, view.axes[name].title), el("dd", {}, m.text)));
    tip.replaceChildren(el("strong", {}, `${p.trial.id}  ${p.trial.recipe}`), el("span", {}, [p.trial.backend, p.trial.options].filter(Boolean).join(" · ")), el("em", {}, p.trial.outcome), el("dl", {}, ...rows));
    tip.hidden = false;
    const spill = left + 18 + tip.offsetWidth > stage.clientWidth;
    tip.style.left = `${Math.max(0, spill ? left - 18 - tip.offsetWidth : left + 18)}px`;
    tip.style.top = `${Math.max(0, Math.min(top - 20, stage.clientHeight - tip.offsetHeight))}px`;
  }

  function mark() {
    d3.select(stage).selectAll(".point").classed("selected", (p) => p.trial.id === state.selected).classed("dim", (p) => state.shown !== null && !state.shown.has(p.trial.id));
  }

  reset(0);
  reset(1);
  new ResizeObserver(() => { if (d3.select(stage).select("svg").attr("width") !== `${Math.max(260, stage.clientWidth)}` && stage.clientWidth) { if (state.box) boxed(null); draw(); } }).observe(stage);
  return {
    select(id) { state.selected = id; mark(); },
    dim(ids) { state.shown = ids; mark(); },
  };
}

/** Axes with a light grid, and their titles. */
function drawAxes(svg, { x, y, axes, width, height, edge }) {
  const titled = (axis) => `${axis.title}${axis.unit ? `, ${axis.unit}` : ""} (${axis.better} is better)`;
  const across = d3.axisBottom(x).ticks(width / 95, x.base ? "~g" : undefined).tickSize(edge.top + edge.bottom - height).tickPadding(7);
  const up = d3.axisLeft(y).ticks(height / 60, y.base ? "~g" : undefined).tickSize(edge.left + edge.right - width).tickPadding(7);
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - edge.bottom})`).call(across);
  svg.append("g").attr("class", "axis").attr("transform", `translate(${edge.left},0)`).call(up);
  svg.append("text").attr("class", "title").attr("x", width - edge.right).attr("y", height - 6).attr("text-anchor", "end").text(titled(axes[0]));
  svg.append("text").attr("class", "title").attr("transform", "rotate(-90)").attr("x", -edge.top).attr("y", 12).attr("text-anchor", "end").text(titled(axes[1]));
}

/** The limits as dashed lines, with the side that misses them shaded. */
function drawLimits(svg, { x, y, axes, width, height, edge }) {
  const right = width - edge.right, bottom = height - edge.bottom;
  const group = svg.append("g").attr("class", "limits");
  const shade = (left, top, wide, high) => group.append("rect").attr("x", left).attr("y", top).attr("width", Math.max(0, wide)).attr("height", Math.max(0, high));
  for (const limit of axes[0].limits) {
    const at = x(limit.at);
    if (limit.below) shade(at, edge.top, right - at, bottom - edge.top); else shade(edge.left, edge.top, at - edge.left, bottom - edge.top);
    group.append("line").attr("x1", at).attr("x2", at).attr("y1", edge.top).attr("y2", bottom);
    group.append("text").attr("x", at + (limit.below ? -5 : 5)).attr("y", bottom - 6).attr("text-anchor", limit.below ? "end" : "start").text(limit.text);
  }
  for (const limit of axes[1].limits) {
    const at = y(limit.at);
    if (limit.below) shade(edge.left, edge.top, right - edge.left, at - edge.top); else shade(edge.left, at, right - edge.left, bottom - at);
    group.append("line").attr("x1", edge.left).attr("x2", right).attr("y1", at).attr("y2", at);
    group.append("text").attr("x", right - 5).attr("y", at + (limit.below ? 13 : -5)).attr("text-anchor", "end").text(limit.text);
  }
}

/** One trial's readings in ms: a row per process start, a thin line per reading, a thick one at the median. */
function stripChart(host, starts) {
  const width = Math.max(240, host.clientWidth || 320), row = 20, edge = { left: 56, right: 10, bottom: 34 };
  const height = starts.length * row + edge.bottom;
  const all = starts.flat();
  const x = d3.scaleLinear(d3.extent(all), [edge.left, width - edge.right]).nice();
  const svg = d3.create("svg").attr("class", "strips").attr("viewBox", `0 0 ${width} ${height}`).attr("width", width).attr("height", height);
  svg.attr("role", "img").attr("aria-label", `${all.length} latency readings over ${starts.length} process starts, ${d3.min(all)} to ${d3.max(all)} ms`);
  svg.append("g").attr("class", "axis").attr("transform", `translate(0,${height - edge.bottom})`).call(d3.axisBottom(x).ticks(5));
  svg.append("text").attr("class", "title").attr("x", width - edge.right).attr("y", height - 3).attr("text-anchor", "end").text("ms");
  starts.forEach((values, i) => {
    const top = i * row + 4;
    svg.append("text").attr("class", "title").attr("x", 0).attr("y", top + 10).text(`start ${i + 1}`);
    const line = (value, css) => svg.append("line").attr("class", css).attr("x1", x(value)).attr("x2", x(value)).attr("y1", top).attr("y2", top + 12);
    for (const value of values) line(value, "reading");
    if (values.length) line(d3.median(values), "median");
  });
  host.append(svg.node());
}
