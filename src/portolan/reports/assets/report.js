"use strict";
// Makes the tables of the report sortable and filterable, and links them with the chart and the details.

(() => {
  const payload = JSON.parse(document.getElementById("portolan-data").textContent);

  document.documentElement.classList.add("scripted");
  const articles = [...document.querySelectorAll("article.study")];
  const started = new Set();
  const start = (i) => {
    if (!started.has(i)) {
      started.add(i);
      study(articles[i], payload.views[i], payload.studies[i]);
    }
  };
  if (articles.length > 1) chooser(articles, start);
  else start(0);

  /** Shows one study at a time; the links of the summary choose it, so that Back works. */
  function chooser(pages, opened) {
    const links = [...document.querySelectorAll(".summary a")];
    const show = () => {
      const at = Math.max(
        0,
        pages.findIndex((page) => `#${page.id}` === location.hash),
      );
      pages.forEach((page, i) => {
        page.hidden = i !== at;
      });
      links.forEach((link, i) => {
        link.ariaCurrent = i === at ? "true" : "false";
        link.closest("tr").classList.toggle("selected", i === at);
      });
      opened(at);
    };
    addEventListener("hashchange", show);
    show();
  }

  function study(page, view, raw) {
    const part = (name) => page.querySelector(`[data-part="${name}"]`);
    const byId = new Map(view.trials.map((trial) => [trial.id, trial]));
    let chart = null;
    const table = trialsTable(part("list"), view, { pick, changed: (ids) => chart?.dim(ids) });
    if (view.start.length)
      chart = scatterChart(part("chart"), view, { pick: (id) => pick(id, "chart"), box: table.box });
    rawData(part("raw"), view.name, raw);

    function pick(id, from) {
      chart?.select(id);
      table.select(id, from === "chart");
      details(part("details"), byId.get(id), view);
      // Where the details are not beside the table, a row that was clicked would seem to do nothing.
      if (from === "table" && matchMedia("(max-width: 1000px)").matches)
        part("details").scrollIntoView({ block: "nearest" });
    }
    if (view.selected !== null) pick(view.selected);
    else part("details").hidden = true;
  }

  /** Sorting, filters and selection of the table that the page came with. */
  function trialsTable(host, view, on) {
    const body = host.querySelector("tbody");
    const rows = [...body.rows];
    const byId = new Map(view.trials.map((trial) => [trial.id, trial]));
    const state = { status: "", backend: "", text: "", box: null };
    const count = el("output", { className: "count" });
    host.prepend(filters());
    host.querySelectorAll("thead th").forEach(sortable);
    rows.forEach(selectable);
    apply();

    function filters() {
      const choice = (label, key, values) => {
        const options = values.map((value) => el("option", { value }, value));
        const select = el(
          "select",
          {
            onchange: () => {
              state[key] = select.value;
              apply();
            },
          },
          el("option", { value: "" }, "all"),
          ...options,
        );
        select.dataset.filter = key;
        return el("label", {}, `${label} `, select);
      };
      const search = el("input", {
        type: "search",
        placeholder: "recipe, option, reason",
        oninput: () => {
          state.text = search.value.toLowerCase();
          apply();
        },
      });
      search.dataset.filter = "text";
      const kinds = [...new Set(view.trials.map((t) => t.status))],
        backends = [...new Set(view.trials.map((t) => t.backend))].sort();
      const extra = { met: (t) => t.met, front: (t) => t.pareto };
      const met = Object.keys(extra).filter((name) => view.trials.some(extra[name]));
      return el(
        "div",
        { className: "controls" },
        choice("show", "status", [...met, ...kinds]),
        choice("backend", "backend", backends),
        el("label", {}, "find ", search),
        count,
      );
    }

    function apply() {
      const shown = new Set();
      for (const row of rows) {
        const trial = byId.get(Number(row.dataset.trial));
        row.hidden = !matches(trial, row);
        if (!row.hidden) shown.add(trial.id);
      }
      count.value = `${shown.size} of ${rows.length} trials`;
      on.changed(shown.size === rows.length ? null : shown);
    }

    function matches(trial, row) {
      const status =
        !state.status ||
        trial.status === state.status ||
        (state.status === "met" && trial.met) ||
        (state.status === "front" && trial.pareto);
      return (
        status &&
        (!state.backend || trial.backend === state.backend) &&
        (!state.box || state.box.has(trial.id)) &&
        row.textContent.toLowerCase().includes(state.text)
      );
    }

    function sortable(head, column) {
      const button = el("button", { type: "button", onclick: () => sort(head, column) }, head.textContent);
      head.replaceChildren(button);
    }

    function sort(head, column) {
      const down = head.ariaSort === "ascending" ? -1 : 1;
      host.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = down > 0 ? "ascending" : "descending";
      const value = (row) => {
        const v = row.cells[column].dataset.v;
        return head.dataset.kind === "number" && v !== undefined ? Number(v) : v;
      };
      // What has no number stays last in both directions.
      const order = (a, b) =>
        (a === undefined) - (b === undefined) || (a === undefined ? 0 : down * d3.ascending(a, b));
      rows.sort((a, b) => order(value(a), value(b)));
      body.append(...rows);
    }

    function selectable(row) {
      const cell = row.cells[0],
        id = Number(row.dataset.trial);
      const button = el(
        "button",
        { type: "button", className: "pick", ariaLabel: `details of trial ${id}` },
        cell.textContent,
      );
      cell.replaceChildren(button);
      row.addEventListener("click", () => {
        if (!String(getSelection())) on.pick(id, "table");
      });
    }

    return {
      box(ids) {
        state.box = ids && new Set(ids);
        apply();
      },
      select(id, scroll) {
        for (const row of rows) {
          const mine = Number(row.dataset.trial) === id;
          row.classList.toggle("selected", mine);
          row.querySelector(".pick").ariaPressed = String(mine);
          if (mine && scroll) reveal(row);
        }
      },
    };
  }

  /** Scrolls a row into view inside its own box, never the page away from the chart. */
  function reveal(row) {
    const box = row.closest(".scroll");
    if (row.offsetTop < box.scrollTop || row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight)
      box.scrollTop = row.offsetTop - box.clientHeight / 3;
  }

  /** One trial: its numbers, stages, recipe, how to repeat it, and its readings. */
  function details(host, trial, view) {
    const starts = trial.samples.filter((values) => values.length);
    const strip = el("div", { className: "strip" });
    const head = [el("h4", {}, `Trial ${trial.id}`), trial.role ? el("span", { className: "badge" }, trial.role) : ""];
    host.setAttribute("aria-live", "polite");
    host.replaceChildren(
      el("div", { className: "head" }, ...head),
      el("p", {}, el("code", {}, trial.recipe), ` on ${[trial.backend, trial.options].filter(Boolean).join(", ")}`),
      el(
        "p",
        { className: trial.met ? "said good" : "said" },
        trial.status === "ok" && !trial.met ? `not met: ${trial.outcome}` : trial.outcome,
      ),
      ...numbers(trial, view),
      ...(starts.length ? [el("h5", {}, "Latency of each process start"), strip] : []),
      ...(trial.command ? [el("h5", {}, "Repeat it"), copyable(trial.command)] : []),
      el("h5", {}, "Recipe"),
      copyable(trial.toml),
      ...(trial.stages.length
        ? [
            el("h5", {}, "Stages"),
            el("ol", { className: "stages" }, ...trial.stages.map((stage) => el("li", {}, stage))),
          ]
        : []),
      ...(trial.seconds ? [el("p", { className: "sub" }, `took ${trial.seconds}`)] : []),
    );
    host.hidden = false;
    if (starts.length) stripChart(strip, starts);
  }

  function numbers(trial, view) {
    const rows = Object.entries(trial.metrics).map(([name, m]) => {
      const n = m.n === null ? "" : `n=${m.n.toLocaleString("en")}`;
      const kind = m.kind === "measured" ? "" : m.kind;
      return el(
        "tr",
        {},
        el("th", { scope: "row" }, view.axes[name].title),
        el("td", { className: "num" }, m.text),
        el("td", { className: "sub" }, [m.interval, n, kind].filter(Boolean).join(" · ")),
      );
    });
    return rows.length ? [el("table", { className: "numbers" }, el("tbody", {}, ...rows))] : [];
  }

  function copyable(text) {
    const pre = el("pre", {}, text);
    const button = el("button", { type: "button", className: "quiet copy" }, "copy");
    button.onclick = async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(pre); // no clipboard here: leave it selected for the keyboard
        button.textContent = "selected";
      }
    };
    return el("div", { className: "copyable" }, pre, button);
  }

  function rawData(host, name, raw) {
    const text = JSON.stringify(raw, null, 2);
    const save = () => {
      const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      el("a", { href: url, download: `${name.replace(/[^\w.-]+/g, "-").slice(0, 80) || "study"}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 0);
    };
    const fold = el("details", {}, el("summary", {}, `Show ${(text.length / 1024).toFixed(0)} KiB of JSON`));
    fold.addEventListener("toggle", () => fold.append(el("pre", { className: "json" }, text)), { once: true });
    host.append(
      el("button", { type: "button", className: "download", onclick: save }, "Download the study as JSON"),
      fold,
    );
  }
})();
