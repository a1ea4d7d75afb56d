"use strict";
(() => {
  const at = (id) => document.getElementById(id);
  const root = document.documentElement, body = document.body;
  const SILENT_MS = 5000;
  let state = {}, control = null, doc = null, asked = 0, chosen = null, outcome = "", heard = Date.now();

  // ----- light and dark ----------------------------------------------------------------------
  const prefers = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("clockwork-theme"); } catch { return null; } };
  function paint() {
    root.dataset.theme = stored() || (prefers.matches ? "dark" : "light");
    if (!doc) return;
    const style = getComputedStyle(root), color = (name) => style.getPropertyValue(name).trim();
    const ink = color("--ink"), muted = color("--muted"), line = color("--line"), card = color("--card");
    // Colours belong to this browser, so the server gets no change.
    const set = (model, values) => model.setv(values, { sync: false });
    for (const plot of doc.roots()) {
      for (const axis of [...plot.below, ...plot.left]) set(axis, { major_label_text_color: muted, axis_label_text_color: muted });
      for (const part of plot.center) if ("grid_line_color" in part && part.grid_line_color !== null) set(part, { grid_line_color: line });
      for (const renderer of plot.renderers) {
        if (renderer.name === "ink") set(renderer.glyph, { line_color: ink });
        if (renderer.name === "ink text") set(renderer.glyph, { text_color: ink, background_fill_color: card });
        if (renderer.name === "batches") set(renderer, { visible: innerWidth >= 900 });  // in a narrower window they would overlap
        if (renderer.name === "rule") set(renderer.glyph, { line_color: line });
        if (renderer.name === "cut") set(renderer.glyph, { line_color: card });
      }
    }
  }
  prefers.addEventListener("change", paint);
  window.addEventListener("resize", paint);
  at("theme").addEventListener("click", () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("clockwork-theme", next); } catch { root.dataset.theme = next; }
    paint();
  });
  paint();

  // ----- texts -------------------------------------------------------------------------------
  const number = (value) => value >= 100 ? Math.round(value).toLocaleString("en") : value >= 10 ? value.toFixed(0) : value > 0 ? value.toFixed(1) : "0";
  const ms = (value) => value >= 1000 ? `${(value / 1000).toFixed(2)} s` : value >= 100 ? `${value.toFixed(0)} ms` : `${value.toFixed(1)} ms`;
  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }
  function put(id, text, unit) {
    const place = at(id);
    place.textContent = text;
    if (unit) place.append(element("small", unit));
  }

  function say(now) {
    const silent = now - heard > SILENT_MS;
    const kind = silent ? "disconnected" : state.state || "loading";
    body.dataset.state = kind;
    body.toggleAttribute("data-stale", kind === "disconnected");
    at("pill").querySelector("b").textContent = at("pause").ariaPressed === "true" && kind === "live" ? "Paused"
      : { loading: "Loading", live: "Live", empty: "No devices", disconnected: "Disconnected" }[kind];
    let text = "";
    if (silent) text = `This page has heard nothing of the dashboard's server since ${clock(heard / 1000)}. The page shows the state of that time.`;
    else if (kind === "disconnected") text = `No answer from the controller at ${state.endpoint} since ${clock(state.since)}${state.note ? `: ${state.note}` : ""}.${state.tiles ? " The page shows the state of that time." : ""}`;
    else if (kind === "loading") text = `Waiting for the first steps of ${state.endpoint || "the cluster"}.`;
    else if (kind === "empty") text = "No worker has a device here. Start one with: clockwork worker.";
    else if (state.restarted && state.now - state.restarted < 60) text = `The controller was started anew at ${clock(state.restarted)}. The page shows the time since then.`;
    at("banner").hidden = !text;
    at("banner").querySelector("span").textContent = text;
    at("reload").hidden = !silent;
  }
  at("reload").addEventListener("click", () => location.reload());

  function show() {
    at("endpoint").textContent = state.endpoint || "";
    at("standing").hidden = !state.standing;
    at("standing").textContent = state.standing ? state.standing.split(";")[1].trim() : "";
    at("standing").title = state.standing || "";
    const share = state.share === undefined ? 1 : state.share;
    at("share").hidden = share > 0.995;
    at("share").textContent = `${Math.max(1, Math.round(share * 100))} % of the time shown${state.behind >= 1 ? `, ${state.behind.toFixed(1)} s behind` : ""}`;
    const t = state.tiles;
    if (t) {
      put("good", number(t.good), "/s");
      put("refused", number(t.refused), "/s");
      put("missed", number(t.missed), "/s");
      put("waiting", t.waiting.toLocaleString("en"));
      put("p99", t.p99_ms ? ms(t.p99_ms) : "–");
      at("p50").textContent = t.p50_ms ? `p99; median ${ms(t.p50_ms)}` : "99th percentile";
      put("executing", `${Math.round(t.executing * 100)} %`);
      at("batch").textContent = `of ${t.devices} busy${t.batch ? `; batch ${t.batch.toFixed(1)}` : ""}`;
      at("reasons").textContent = state.reasons.length ? state.reasons.map(([reason]) => reason.replaceAll("_", " ")).join(", ") : "none of late";
      const [within, worst, count] = state.predicted;
      at("predicted").textContent = count ? `${(within * 100).toFixed(1)} % of ${count.toLocaleString("en")} executions within a tenth; 99th percentile ${worst >= 0 ? "+" : ""}${(worst * 100).toFixed(1)} %.` : "No execution yet.";
      at("used").textContent = `${Math.round(state.used * 100)} % of all pages are used.${state.unplaced ? ` Pale: ${state.unplaced} model${state.unplaced > 1 ? "s" : ""} loaded before what is kept; where they lie is not known.` : ""}`;
      legend();
    }
    rows();
    say(Date.now());
  }

  let legendOf = "";
  function legend() {
    const key = JSON.stringify(state.models) + state.whole;
    if (key === legendOf) return;
    legendOf = key;
    const entry = (text, color, name) => {
      const item = element("li"), swatch = element("i", undefined, name);
      if (color) swatch.style.background = color;
      item.append(swatch, text);
      return item;
    };
    at("models").replaceChildren(
      ...state.models.map(([label, color]) => entry(label.replace(/@1$/, ""), color)), entry("other models", OTHER),
      entry("idle with work waiting", "", "hatch"), ...(state.whole ? [] : [entry("not shown", "", "unread")]),
    );
  }

  // ----- requests ----------------------------------------------------------------------------
  const table = document.querySelector(".table");
  function rows(force) {
    if (!state.requests || (!force && (table.matches(":hover") || table.contains(document.activeElement) && document.activeElement !== table))) return;
    const part = at("search").value.trim().toLowerCase();
    const found = state.requests.filter((row) => (!outcome || row[2] === outcome) && (!part || row[1].toLowerCase().includes(part))).slice(0, 60);
    at("rows").replaceChildren(...found.map(([id, model, what, why, slo, after, ago]) => {
      const row = element("tr"), open = element("button", String(id)), first = element("td");
      open.type = "button";
      open.setAttribute("aria-label", `Follow request ${id}`);
      first.append(open);
      const second = element("td", model.replace(/@1$/, "")), third = element("td"), sign = element("span", LOOKS[what][1], "sign");
      second.title = model;
      sign.style.background = LOOKS[what][0];
      sign.setAttribute("aria-hidden", "true");
      third.append(sign, why ? `${what}: ${why.replaceAll("_", " ")}` : what);
      row.append(first, second, third, element("td", slo > 0 ? ms(slo) : "–", "n"), element("td", after < 0 ? "–" : after ? ms(after) : "at once", "n"), element("td", `${ago.toFixed(1)} s`, "n"));
      row.ariaSelected = String(id === chosen);
      row.addEventListener("click", (event) => {
        const marked = getSelection();  // no click: the user marked text of the row to copy it
        if (event.target === open || marked.isCollapsed || !marked.containsNode(row, true)) follow(id);
      });
      return row;
    }));
    at("none").hidden = found.length > 0;
  }
  table.addEventListener("mouseleave", () => rows());
  at("search").addEventListener("input", () => rows(true));
  for (const button of document.querySelectorAll("[data-outcome]")) button.addEventListener("click", () => {
    outcome = button.dataset.outcome;
    press("[data-outcome]", button);
    rows(true);
  });
  function press(group, pressed) {
    for (const button of document.querySelectorAll(group)) button.ariaPressed = String(button === pressed);
  }

  function ask(wish) { if (control) control.data = { json: [JSON.stringify({ ...wish, asked: ++asked })] }; }
  function follow(id) { chosen = id; rows(true); ask({ request: id }); }
  function about(told) {
    if (told.id === undefined || told.id !== chosen) return;
    at("choose").hidden = true;
    at("chosen").hidden = false;
    at("title").textContent = told.title;
    at("sentences").replaceChildren(...told.sentences.map((text) => element("p", text)));
    at("could").replaceChildren(...told.devices.map((text) => element("li", text)));
    at("f-around").hidden = !told.devices.length;
    at("title").focus({ preventScroll: true });
  }
  at("close").addEventListener("click", () => {
    chosen = null;
    at("chosen").hidden = at("f-around").hidden = true;
    at("choose").hidden = false;
    rows(true);
  });

  // ----- controls ----------------------------------------------------------------------------
  for (const button of document.querySelectorAll("[data-seconds]")) button.addEventListener("click", () => {
    press("[data-seconds]", button);
    ask({ seconds: Number(button.dataset.seconds) });
  });
  at("pause").addEventListener("click", () => {
    const is = at("pause").ariaPressed !== "true";
    at("pause").ariaPressed = String(is);
    at("pause").textContent = is ? "Go on" : "Pause";
    ask({ paused: is });
    say(Date.now());
  });

  // Figures do not react to keys, so they do not take the focus.
  function passBy(node) {
    for (const child of node.querySelectorAll("*")) {
      if (child.tabIndex === 0) child.tabIndex = -1;
      if (child.shadowRoot) passBy(child.shadowRoot);
    }
  }

  // ----- the document ------------------------------------------------------------------------
  function listen(name, heed) {
    const source = doc.get_model_by_name(name);
    const read = () => heed(JSON.parse(source.data.json[0]));
    source.properties.data.change.connect(read);
    read();
    return source;
  }
  const found = setInterval(() => {
    doc = window.Bokeh?.documents?.find((candidate) => candidate.get_model_by_name("state")) || null;
    if (!doc) return;
    clearInterval(found);
    control = doc.get_model_by_name("control");
    listen("state", (told) => { state = told; heard = Date.now(); show(); });
    listen("about", about);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) {  // a hidden page gets no updates, so their absence does not count as silence
        heard = Date.now();
        say(heard);
      }
      ask({ hidden: document.hidden });
    });
    paint();
    const everySecond = () => {
      say(Date.now());
      document.querySelectorAll(".figure").forEach(passBy);
    };
    everySecond();
    setInterval(everySecond, 1000);
    body.dataset.ready = "true";
  }, 50);
})();
