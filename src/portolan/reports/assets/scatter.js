"use strict";
// The trials as a scatter of two metrics: hover, click, a box to filter and to zoom in on.

/**
 * The scatter of two metrics. `on.pick(id)` is called for a clicked point, `on.box(ids or null)` for a drawn box.
 * Returns {select(id), dim(ids)}.
 */
function scatterChart(host, view, on) {
  const style = backendStyle(view);
  const state = { names: [...view.start], log: [false, false], selected: null, shown: null, box: null, zoom: null };
  let eraseBox = () => {};
  const controls = el("div", { className: "controls" });
  const stage = el("div", { className: "stage" });
  const tip = el("div", { className: "tip", hidden: true });
  const legend = el("ul", { className: "legend" });
  host.append(controls, stage, legend);
  stage.append(tip);
  const canLog = (i) => pointsOf(view, state.names).every((p) => (i ? p.y : p.x) > 0);
  const spread = (i) => {
    const v = pointsOf(view, state.names).map((p) => (i ? p.y : p.x));
    return d3.max(v) / d3.min(v);
  };
  const boxes = ["x", "y"].map((letter, i) => axisControl(letter, i));
  for (const name of style.names) legend.append(el("li", {}, glyph(style, name), name));
  legend.append(
    el(
      "li",
      { className: "note" },
      "filled: meets every limit · hollow: does not · star: best or closest · line: front of these two metrics · bars: 95% interval",
    ),
  );
  const hint = el(
    "p",
    { className: "hint" },
    "Drag a box to filter the table; click a point for its details, arrow keys step through them.",
  );
  const zoom = el(
    "button",
    {
      type: "button",
      className: "quiet",
      hidden: true,
      onclick: () => {
        state.zoom = state.box.ends;
        draw();
      },
    },
    "zoom in",
  );
  const clear = el(
    "button",
    { type: "button", className: "quiet", hidden: true, onclick: () => boxed(null) },
    "clear box",
  );
  controls.append(zoom, clear);
  host.append(hint);
  stage.tabIndex = 0;
  stage.setAttribute("role", "group");
  stage.addEventListener("keydown", step);

  function axisControl(letter, i) {
    const options = Object.entries(view.axes).map(([name, axis]) =>
      el("option", { value: name, selected: name === state.names[i] }, axis.title),
    );
    const select = el(
      "select",
      {
        onchange: () => {
          state.names[i] = select.value;
          reset(i);
        },
      },
      ...options,
    );
    const log = el("input", {
      type: "checkbox",
      onchange: () => {
        state.log[i] = log.checked;
        boxed(null);
        draw();
      },
    });
    controls.append(el("label", {}, `${letter} `, select), el("label", { className: "check" }, log, ` log ${letter}`));
    select.dataset.axis = log.dataset.log = letter;
    return log;
  }

  function reset(i) {
    state.zoom = null;
    state.log[i] = canLog(i) && spread(i) > 12;
    boxed(null);
    draw();
  }

  /** Takes a box, {ids, ends}, or null to forget the one before. */
  function boxed(box) {
    const zoomed = state.zoom !== null && box === null;
    state.box = box;
    zoom.hidden = clear.hidden = box === null;
    on.box(box && box.ids);
    if (box === null) eraseBox();
    if (zoomed) {
      state.zoom = null;
      draw();
    }
  }

  function step(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const order = pointsOf(view, state.names)
      .sort((a, b) => a.x - b.x)
      .map((p) => p.trial.id);
    const at = order.indexOf(state.selected);
    if (order.length) on.pick(order[at < 0 ? 0 : (at + move + order.length) % order.length]);
  }

  function draw() {
    boxes.forEach((box, i) => {
      box.disabled = !canLog(i);
      state.log[i] &&= !box.disabled;
      box.checked = state.log[i];
    });
    const axes = state.names.map((name) => view.axes[name]);
    const within = (value, ends) => !ends || (value >= ends[0] && value <= ends[1]);
    const points = pointsOf(view, state.names).filter(
      (p) => within(p.x, state.zoom?.[0]) && within(p.y, state.zoom?.[1]),
    );
    const width = Math.max(260, stage.clientWidth),
      height = Math.round(Math.min(440, Math.max(270, width * 0.58)));
    const edge = { top: 14, right: 16, bottom: 42, left: 66 };
    const x = scaleOf(
      points.map((p) => p.xs),
      axes[0].limits,
      state.log[0],
      [edge.left, width - edge.right],
      state.zoom?.[0],
    );
    const y = scaleOf(
      points.map((p) => p.ys),
      axes[1].limits,
      state.log[1],
      [height - edge.bottom, edge.top],
      state.zoom?.[1],
    );
    stage.setAttribute("aria-label", `${points.length} trials by ${axes[0].title} and ${axes[1].title}`);
    d3.select(stage).selectAll("svg").remove();
    const svg = d3
      .select(stage)
      .insert("svg", ".tip")
      .attr("viewBox", `0 0 ${width} ${height}`)
      .attr("width", width)
      .attr("height", height);
    drawAxes(svg, { x, y, axes, width, height, edge });
    drawLimits(svg, { x, y, axes, width, height, edge });
    drawBrush(svg, { x, y, points, width, height, edge });
    const steps = d3
      .line(
        (p) => x(p.x),
        (p) => y(p.y),
      )
      .curve(axes[0].better === "lower" ? d3.curveStepAfter : d3.curveStepBefore);
    svg
      .append("path")
      .attr("class", "front")
      .attr("d", steps(frontOf(points, { x: axes[0].better, y: axes[1].better })));
    drawPoints(svg, points, x, y);
    mark();
  }

  function drawBrush(svg, { x, y, points, width, height, edge }) {
    const inside = ([[x0, y0], [x1, y1]]) =>
      points.filter((p) => x(p.x) >= x0 && x(p.x) <= x1 && y(p.y) >= y0 && y(p.y) <= y1);
    const brush = d3
      .brush()
      .extent([
        [edge.left, edge.top],
        [width - edge.right, height - edge.bottom],
      ])
      .touchable(false);
    const ends = ([[x0, y0], [x1, y1]]) => [
      [x.invert(x0), x.invert(x1)],
      [y.invert(y1), y.invert(y0)],
    ];
    brush.on(
      "end",
      ({ sourceEvent, selection }) =>
        sourceEvent && boxed(selection && { ids: inside(selection).map((p) => p.trial.id), ends: ends(selection) }),
    );
    const group = svg.append("g").attr("class", "brush").call(brush);
    eraseBox = () => brush.clear(group);
  }

  function drawPoints(svg, points, x, y) {
    const order = { baseline: 1, closest: 2, best: 2 };
    const marks = svg
      .append("g")
      .selectAll("g")
      .data([...points].sort((a, b) => (order[a.trial.role] ?? 0) - (order[b.trial.role] ?? 0)))
      .join("g");
    marks
      .attr("class", (p) => `point ${style.css(p.trial.backend)} ${p.trial.met ? "met" : "unmet"} ${p.trial.role}`)
      .attr("data-trial", (p) => p.trial.id);
    marks
      .append("line")
      .attr("class", "error")
      .attr("x1", (p) => x(p.xs.lo))
      .attr("x2", (p) => x(p.xs.hi))
      .attr("y1", (p) => y(p.y))
      .attr("y2", (p) => y(p.y));
    marks
      .append("line")
      .attr("class", "error")
      .attr("y1", (p) => y(p.ys.lo))
      .attr("y2", (p) => y(p.ys.hi))
      .attr("x1", (p) => x(p.x))
      .attr("x2", (p) => x(p.x));
    const at = (p) => `translate(${x(p.x)},${y(p.y)})`;
    const star = (p) => p.trial.role === "best" || p.trial.role === "closest";
    marks.append("circle").attr("class", "ring").attr("r", 13).attr("transform", at);
    marks
      .append("path")
      .attr("class", "dot")
      .attr("transform", at)
      .attr("d", (p) => d3.symbol(star(p) ? d3.symbolStar : style.shape(p.trial.backend), star(p) ? 200 : 70)());
    marks
      .filter((p) => p.trial.role)
      .append("text")
      .attr("x", (p) => x(p.x) + (nearRight(x, p) ? -13 : 13))
      .attr("y", (p) => y(p.y) - 9)
      .attr("text-anchor", (p) => (nearRight(x, p) ? "end" : "start"))
      .text((p) => p.trial.role);
    marks
      .append("circle")
      .attr("class", "target")
      .attr("r", 12)
      .attr("transform", at)
      .on("click", (_, p) => on.pick(p.trial.id))
      .on("pointerenter", (_, p) => hover(p, x(p.x), y(p.y)))
      .on("pointerleave", () => {
        tip.hidden = true;
      });
  }

  function nearRight(x, p) {
    return x(p.x) > x.range()[1] - 80;
  }

  function hover(p, left, top) {
    const rows = Object.entries(p.trial.metrics)
      .slice(0, 8)
      .map(([name, m]) => el("div", {}, el("dt", {}, view.axes[name].title), el("dd", {}, m.text)));
    tip.replaceChildren(
      el("strong", {}, `${p.trial.id}  ${p.trial.recipe}`),
      el("span", {}, [p.trial.backend, p.trial.options].filter(Boolean).join(" · ")),
      el("em", {}, p.trial.outcome),
      el("dl", {}, ...rows),
    );
    tip.hidden = false;
    const spill = left + 18 + tip.offsetWidth > stage.clientWidth;
    tip.style.left = `${Math.max(0, spill ? left - 18 - tip.offsetWidth : left + 18)}px`;
    tip.style.top = `${Math.max(0, Math.min(top - 20, stage.clientHeight - tip.offsetHeight))}px`;
  }

  function mark() {
    d3.select(stage)
      .selectAll(".point")
      .classed("selected", (p) => p.trial.id === state.selected)
      .classed("dim", (p) => state.shown !== null && !state.shown.has(p.trial.id));
  }

  reset(0);
  reset(1);
  new ResizeObserver(() => {
    if (d3.select(stage).select("svg").attr("width") !== `${Math.max(260, stage.clientWidth)}` && stage.clientWidth) {
      if (state.box && !state.zoom) boxed(null);
      draw();
    }
  }).observe(stage);
  return {
    select(id) {
      state.selected = id;
      mark();
    },
    dim(ids) {
      state.shown = ids;
      mark();
    },
  };
}
