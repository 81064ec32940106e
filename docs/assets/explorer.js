// The results explorer: curves with bands from the runs that the page carries. No library, no request.
(() => {
  "use strict";
  const root = document.getElementById("explorer");
  const { metrics, records } = JSON.parse(document.getElementById("runs").textContent);
  const SIZE = { width: 860, height: 440, left: 56, right: 14, top: 28, bottom: 44 };
  const DASHES = ["", "7 4", "2 3"];
  const AXES = { epoch: "epoch", lr: "learning rate, last epoch" };
  if (!records.length) {
    root.textContent = "No record has runs to draw yet.";
    return;
  }

  // What is chosen; kept in the address, so that a view can be linked to.
  const state = { record: 0, x: "epoch", metric: "", runs: "best", off: new Set() };

  const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;
  const deviation = (values) => {
    if (values.length < 2) return 0;
    const m = mean(values);
    return Math.sqrt(values.reduce((sum, v) => sum + (v - m) ** 2, 0) / (values.length - 1));
  };
  const last = (values) => values.length ? values[values.length - 1] : null;
  const rounded = (value) => String(Number(value.toPrecision(2)));
  const shown = (value) => value === null ? "–" : Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  const element = (name, attributes = {}, ...children) => {
    const svg = ["svg", "g", "path", "line", "circle", "text", "rect"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  const record = () => records[state.record];
  const methods = () => [...new Set(record().lines.map((line) => line.method))];
  const look = (method) => {
    const i = methods().indexOf(method);
    return { stroke: `var(--c${i % 8})`, "stroke-dasharray": DASHES[Math.floor(i / 8) % DASHES.length] };
  };

  // A point: its place, the mean over the seeds, the deviation, the number of seeds.
  const point = (x, values) => {
    const known = values.filter((v) => v !== null && v !== undefined);
    return known.length ? { x, y: mean(known), band: deviation(known), seeds: known.length } : null;
  };

  // How a method's lines are ranked: whole runs first, then what their selection went by, the held-out accuracy.
  function best(lines) {
    const final = lines.filter((line) => line.phase === "final");
    const from = final.length ? final : lines;
    const metric = ["val_top1", "test_top1"].find((name) => from.some((line) => Object.values(line.seeds).some((s) => last(s[name] || []) !== null)));
    const score = (line) => Math.max(...Object.values(line.seeds).map((s) => (metric && last(s[metric] || [])) ?? -Infinity));
    const most = Math.max(...from.map((line) => Object.keys(line.seeds).length));
    return from.filter((line) => Object.keys(line.seeds).length === most).sort((a, b) => score(b) - score(a)).slice(0, 1);
  }

  function describe(line) {
    const seeds = Object.keys(line.seeds).length;
    const parts = [`rate ${line.lr}`];
    if (line.head_lr !== "1") parts.push(`head × ${line.head_lr}`);
    if (line.feedback_scale && line.feedback_scale !== "matched") parts.push(`feedback ${line.feedback_scale}`);
    parts.push(line.phase === "final" ? `${seeds} seed${seeds > 1 ? "s" : ""}` : "a trial of the search");
    return parts.join(", ");
  }

  function curves() {
    const found = [];
    for (const method of methods().filter((m) => !state.off.has(m))) {
      const lines = record().lines.filter((line) => line.method === method);
      if (state.x === "epoch") {
        for (const line of state.runs === "best" ? best(lines) : lines) {
          const seeds = Object.values(line.seeds).map((s) => s[state.metric] || []);
          const length = Math.max(...seeds.map((s) => s.length));
          const points = Array.from({ length }, (_, i) => point(i + 1, seeds.map((s) => s[i]))).filter(Boolean);
          if (points.length) found.push({ method, about: describe(line), points });
        }
      } else {
        for (const phase of ["search", "final"]) {
          const rates = new Map();
          for (const line of lines.filter((l) => l.phase === phase)) {
            const values = Object.values(line.seeds).map((s) => last(s[state.metric] || []));
            const rate = Number(line.lr);
            // Several trials at one rate (other decays, other feedback): the best of them, as a search would take.
            const made = point(rate, values);
            if (made && (!rates.has(rate) || made.y > rates.get(rate).y)) rates.set(rate, made);
          }
          const points = [...rates.values()].sort((a, b) => a.x - b.x);
          if (points.length) found.push({ method, about: phase === "final" ? "final runs" : "search", points, dots: true });
        }
      }
    }
    return found;
  }

  function ticks(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw);
    const found = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
    return found;
  }

  function plot(lines) {
    const svg = element("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, class: "explorer__plot", role: "img", "aria-label": `${metrics[state.metric]} against ${AXES[state.x]}` });
    const points = lines.flatMap((line) => line.points);
    if (!points.length) {
      svg.append(element("text", { x: SIZE.width / 2, y: SIZE.height / 2, "text-anchor": "middle" }, "No run of the chosen methods has this metric."));
      return svg;
    }
    const log = state.x === "lr";
    const place = log ? Math.log10 : (x) => x;
    const xs = points.map((p) => place(p.x));
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    if (log || x0 === x1) [x0, x1] = [x0 - 0.15, x1 + 0.15];
    let [y0, y1] = [Math.min(...points.map((p) => p.y - p.band)), Math.max(...points.map((p) => p.y + p.band))];
    const room = (y1 - y0 || Math.abs(y1) || 1) * 0.05;
    [y0, y1] = [y0 - room, y1 + room];
    const X = (x) => SIZE.left + ((place(x) - x0) / (x1 - x0)) * (SIZE.width - SIZE.left - SIZE.right);
    const Y = (y) => SIZE.height - SIZE.bottom - ((y - y0) / (y1 - y0)) * (SIZE.height - SIZE.top - SIZE.bottom);

    for (const t of ticks(y0, y1, 6)) {
      svg.append(element("line", { class: "grid", x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: Y(t), y2: Y(t) }));
      svg.append(element("text", { x: SIZE.left - 8, y: Y(t) + 4, "text-anchor": "end" }, shown(t)));
    }
    const marks = log ? [...new Set(points.map((p) => p.x))].sort((a, b) => a - b) : ticks(x0, x1, SIZE.width / 80).filter(Number.isInteger);
    let free = -Infinity;
    for (const t of marks) {
      if (X(t) < free) continue;
      free = X(t) + 44;
      svg.append(element("line", { class: "grid", x1: X(t), x2: X(t), y1: SIZE.top, y2: SIZE.height - SIZE.bottom }));
      svg.append(element("text", { x: X(t), y: SIZE.height - SIZE.bottom + 18, "text-anchor": "middle" }, String(t)));
    }
    svg.append(element("text", { class: "title", x: SIZE.left, y: 16 }, metrics[state.metric]));
    svg.append(element("text", { class: "title", x: SIZE.width - SIZE.right, y: SIZE.height - 8, "text-anchor": "end" }, AXES[state.x]));

    for (const line of lines) {
      const style = look(line.method);
      const up = line.points.map((p) => `${X(p.x)},${Y(p.y + p.band)}`);
      const down = line.points.map((p) => `${X(p.x)},${Y(p.y - p.band)}`).reverse();
      if (line.points.some((p) => p.band)) {
        svg.append(element("path", { d: `M${up.join("L")}L${down.join("L")}Z`, fill: style.stroke, opacity: 0.16 }));
      }
      const path = element("path", { d: `M${line.points.map((p) => `${X(p.x)},${Y(p.y)}`).join("L")}`, fill: "none", "stroke-width": 2, ...style });
      if (state.runs === "all" && state.x === "epoch") path.setAttribute("opacity", 0.6);
      svg.append(path);
      if (line.dots || line.points.length === 1) {
        for (const p of line.points) svg.append(element("circle", { cx: X(p.x), cy: Y(p.y), r: 3.2, fill: style.stroke }));
      }
    }

    const at = element("line", { class: "at", y1: SIZE.top, y2: SIZE.height - SIZE.bottom, visibility: "hidden" });
    svg.append(at);
    const places = [...new Set(points.map((p) => p.x))].sort((a, b) => a - b);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const wanted = ((event.clientX - box.left) / box.width) * SIZE.width;
      const x = places.reduce((a, b) => (Math.abs(X(b) - wanted) < Math.abs(X(a) - wanted) ? b : a));
      at.setAttribute("x1", X(x));
      at.setAttribute("x2", X(x));
      at.setAttribute("visibility", "visible");
      read(lines, x);
    });
    svg.addEventListener("pointerleave", () => {
      at.setAttribute("visibility", "hidden");
      read([], null);
    });
    return svg;
  }

  const readings = element("div", { class: "explorer__readings", "aria-live": "polite" });
  function read(lines, x) {
    const at = lines.flatMap((line) => line.points.filter((p) => p.x === x).map((p) => ({ ...p, method: line.method })));
    at.sort((a, b) => b.y - a.y);
    const values = at.slice(0, 16).map((p) => `${p.method} ${shown(p.y)}${p.seeds > 1 ? ` ± ${rounded(p.band)}` : ""}`);
    readings.textContent = x === null ? "Point at the plot to read values." : `${state.x === "epoch" ? "epoch" : "rate"} ${x}: ${values.join(" · ")}`;
  }

  function table(lines) {
    const head = element("tr", {}, ...["method", "run", "values", "last", "highest", "lowest"].map((t) => element("th", {}, t)));
    const body = lines.map((line) => {
      const end = last(line.points);
      const ys = line.points.map((p) => p.y);
      const cells = [line.method, line.about, ys.length, `${shown(end.y)}${end.seeds > 1 ? ` ± ${rounded(end.band)}` : ""}`, shown(Math.max(...ys)), shown(Math.min(...ys))];
      return element("tr", {}, ...cells.map((c) => element("td", {}, String(c))));
    });
    return element("div", { class: "explorer__table" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
  }

  function select(label, options, value, change) {
    const made = element("select", { name: label });
    for (const [key, text] of options) {
      const option = element("option", { value: key }, text);
      option.selected = String(key) === String(value);
      made.append(option);
    }
    made.addEventListener("change", () => { change(made.value); draw(); });
    return element("label", {}, label, made);
  }

  function draw() {
    // One unit is one pixel, so that the text stays readable on a narrow page.
    SIZE.width = Math.max(300, Math.min(1000, root.clientWidth || 860));
    SIZE.height = Math.max(300, Math.round(SIZE.width * 0.5));
    const present = record().metrics;
    if (!present.includes(state.metric)) state.metric = present.find((m) => has(m)) || present[0];
    const choices = element("div", { class: "explorer__choices" },
      select("data set and record", records.map((r, i) => [i, `${r.dataset}, ${r.train_size.toLocaleString("en")} ${r.unit}: ${r.name}`]), state.record, (v) => {
        Object.assign(state, { record: Number(v), metric: "", off: new Set() });
      }),
      select("metric", present.map((m) => [m, metrics[m]]), state.metric, (v) => { state.metric = v; }),
      select("against", Object.entries(AXES), state.x, (v) => { state.x = v; }),
      select("runs", [["best", "the chosen setting of each method"], ["all", "all settings"]], state.runs, (v) => { state.runs = v; }),
    );
    const boxes = element("fieldset", { class: "explorer__methods" });
    for (const method of methods()) {
      const box = element("input", { type: "checkbox" });
      box.checked = !state.off.has(method);
      box.addEventListener("change", () => { state.off[box.checked ? "delete" : "add"](method); draw(); });
      const key = element("svg", { viewBox: "0 0 28 10" }, element("line", { x1: 0, x2: 28, y1: 5, y2: 5, "stroke-width": 3, ...look(method) }));
      boxes.append(element("label", {}, box, key, method));
    }
    const lines = curves();
    root.replaceChildren(choices, boxes, plot(lines), readings, table(lines));
    read([], null);
    const view = new URLSearchParams({ record: record().name, data: record().dataset, metric: state.metric, x: state.x, runs: state.runs });
    if (state.off.size) view.set("without", [...state.off].join("~"));
    history.replaceState(null, "", `#${view}`);
  }

  // Whether a final run, or else any run, has the metric: held-out accuracy is of the search alone.
  function has(metric) {
    const final = record().lines.filter((line) => line.phase === "final");
    return (final.length ? final : record().lines).some((line) => Object.values(line.seeds).some((s) => (s[metric] || []).some((v) => v !== null)));
  }

  function restore() {
    const view = new URLSearchParams(location.hash.slice(1));
    const found = records.findIndex((r) => r.name === view.get("record") && r.dataset === view.get("data"));
    // The first to look at has curves: some are scored at the end alone.
    const curved = (line) => line.phase === "final" && Object.values(line.seeds).some((s) => (s.test_top1 || []).filter((v) => v !== null).length > 1);
    const first = records.findIndex((r) => r.lines.some(curved));
    state.record = Math.max(0, found >= 0 ? found : first);
    if (view.get("metric") in metrics) state.metric = view.get("metric");
    if (view.get("x") in AXES) state.x = view.get("x");
    if (["best", "all"].includes(view.get("runs"))) state.runs = view.get("runs");
    state.off = new Set((view.get("without") || "").split("~").filter(Boolean));
  }

  let width = root.clientWidth;
  window.addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    draw();
  });
  restore();
  draw();
})();
