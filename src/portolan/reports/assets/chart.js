"use strict";
// What both charts of the report are made of, on d3, and the smaller of the two: one trial's readings as strips.
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
  svg
    .attr("aria-hidden", "true")
    .append("path")
    .attr("d", d3.symbol(style.shape(name), 64)())
    .attr("class", `${style.css(name)} met`);
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
  const scaled = (metric, axis) => ({
    at: metric.value * axis.factor,
    lo: (metric.lo ?? metric.value) * axis.factor,
    hi: (metric.hi ?? metric.value) * axis.factor,
  });
  return view.trials.flatMap((trial) => {
    const [mx, my] = names.map((name) => trial.metrics[name]);
    if (trial.status !== "ok" || mx?.value == null || my?.value == null) return [];
    const x = scaled(mx, view.axes[names[0]]),
      y = scaled(my, view.axes[names[1]]);
    return [{ trial, x: x.at, y: y.at, xs: x, ys: y }];
  });
}

/** A scale over values, intervals and limits, with air around them; or over what was zoomed in on. */
function scaleOf(spans, limits, log, range, zoom) {
  if (zoom) return (log ? d3.scaleLog : d3.scaleLinear)(zoom, range).clamp(true);
  const ends = [...spans.flatMap((s) => [s.lo, s.hi, s.at]), ...limits.map((l) => l.at)].filter((v) => !log || v > 0);
  let [low, high] = d3.extent(ends);
  if (low === undefined) [low, high] = [log ? 0.1 : 0, 1];
  if (log) return d3.scaleLog([low / 1.15, high * 1.15], range).clamp(true);
  const air = (high - low || Math.abs(high) || 1) * 0.07;
  return d3.scaleLinear([low >= 0 ? Math.max(0, low - air) : low - air, high + air], range).clamp(true);
}

/** Axes with a light grid, and their titles. */
function drawAxes(svg, { x, y, axes, width, height, edge }) {
  const titled = (axis) => `${axis.title}${axis.unit ? `, ${axis.unit}` : ""} (${axis.better} is better)`;
  const across = d3
    .axisBottom(x)
    .ticks(width / 95, x.base ? "~g" : undefined)
    .tickSize(edge.top + edge.bottom - height)
    .tickPadding(7);
  const up = d3
    .axisLeft(y)
    .ticks(height / 60, y.base ? "~g" : undefined)
    .tickSize(edge.left + edge.right - width)
    .tickPadding(7);
  svg
    .append("g")
    .attr("class", "axis")
    .attr("transform", `translate(0,${height - edge.bottom})`)
    .call(across);
  svg.append("g").attr("class", "axis").attr("transform", `translate(${edge.left},0)`).call(up);
  svg
    .append("text")
    .attr("class", "title")
    .attr("x", width - edge.right)
    .attr("y", height - 6)
    .attr("text-anchor", "end")
    .text(titled(axes[0]));
  svg
    .append("text")
    .attr("class", "title")
    .attr("transform", "rotate(-90)")
    .attr("x", -edge.top)
    .attr("y", 12)
    .attr("text-anchor", "end")
    .text(titled(axes[1]));
}

/** The limits as dashed lines, with the side that misses them shaded. */
function drawLimits(svg, { x, y, axes, width, height, edge }) {
  const right = width - edge.right,
    bottom = height - edge.bottom;
  const group = svg.append("g").attr("class", "limits");
  const shade = (left, top, wide, high) =>
    group
      .append("rect")
      .attr("x", left)
      .attr("y", top)
      .attr("width", Math.max(0, wide))
      .attr("height", Math.max(0, high));
  for (const limit of axes[0].limits) {
    const at = x(limit.at);
    if (limit.below) shade(at, edge.top, right - at, bottom - edge.top);
    else shade(edge.left, edge.top, at - edge.left, bottom - edge.top);
    group.append("line").attr("x1", at).attr("x2", at).attr("y1", edge.top).attr("y2", bottom);
    const turned = at > (edge.left + right) / 2; // the text goes where there is room for it
    group
      .append("text")
      .attr("x", at + (turned ? -5 : 5))
      .attr("y", axes[1].better === "lower" ? edge.top + 12 : bottom - 6)
      .attr("text-anchor", turned ? "end" : "start")
      .text(limit.text);
  }
  for (const limit of axes[1].limits) {
    const at = y(limit.at);
    if (limit.below) shade(edge.left, edge.top, right - edge.left, at - edge.top);
    else shade(edge.left, at, right - edge.left, bottom - at);
    group.append("line").attr("x1", edge.left).attr("x2", right).attr("y1", at).attr("y2", at);
    group
      .append("text")
      .attr("x", right - 5)
      .attr("y", at + (limit.below ? 13 : -5))
      .attr("text-anchor", "end")
      .text(limit.text);
  }
}

/** One trial's readings in ms: a row per process start, a thin line per reading, a thick one at the median. */
function stripChart(host, starts) {
  const width = Math.max(240, host.clientWidth || 320),
    row = 20,
    edge = { left: 56, right: 10, bottom: 34 };
  const height = starts.length * row + edge.bottom;
  const all = starts.flat();
  const x = d3.scaleLinear(d3.extent(all), [edge.left, width - edge.right]).nice();
  const svg = d3
    .create("svg")
    .attr("class", "strips")
    .attr("viewBox", `0 0 ${width} ${height}`)
    .attr("width", width)
    .attr("height", height);
  svg
    .attr("role", "img")
    .attr(
      "aria-label",
      `${all.length} latency readings over ${starts.length} process starts, ${d3.min(all)} to ${d3.max(all)} ms`,
    );
  svg
    .append("g")
    .attr("class", "axis")
    .attr("transform", `translate(0,${height - edge.bottom})`)
    .call(d3.axisBottom(x).ticks(5));
  svg
    .append("text")
    .attr("class", "title")
    .attr("x", width - edge.right)
    .attr("y", height - 3)
    .attr("text-anchor", "end")
    .text("ms");
  starts.forEach((values, i) => {
    const top = i * row + 4;
    svg
      .append("text")
      .attr("class", "title")
      .attr("x", 0)
      .attr("y", top + 10)
      .text(`start ${i + 1}`);
    const line = (value, css) =>
      svg
        .append("line")
        .attr("class", css)
        .attr("x1", x(value))
        .attr("x2", x(value))
        .attr("y1", top)
        .attr("y2", top + 12);
    for (const value of values) line(value, "reading");
    if (values.length) line(d3.median(values), "median");
  });
  host.append(svg.node());
}
