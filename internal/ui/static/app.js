"use strict";
// What comes from the server is foreign text: it is put into text nodes and
// attributes, never parsed as HTML. The page's policy holds it to that.
(() => {
  const $ = (id) => document.getElementById(id);
  const main = $("main");

  // el makes an element: el("td", {class: "n"}, "text", child, …).
  function el(name, attrs, ...children) {
    const e = document.createElement(name);
    for (const [k, v] of Object.entries(attrs || {})) {
      if (v === null || v === undefined || v === false) continue;
      if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
      else e.setAttribute(k, v === true ? "" : String(v));
    }
    return put(e, ...children);
  }
  // put fills an element anew.
  function put(e, ...children) {
    e.replaceChildren(...children.flat(9).filter((c) => c !== null && c !== undefined && c !== false));
    return e;
  }

  // renew fills a part of a page anew where what it shows has changed: what is read,
  // scrolled or has the focus stays as it is.
  function renew(e, shown, build) {
    const text = JSON.stringify(shown);
    if (e.shown === text) return;
    e.shown = text;
    put(e, build());
  }

  // heads and cells make tables that stay tables to a screen reader where a narrow
  // page shows their rows as cards, with the heads beside the cells.
  const headRow = (heads) => el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, heads.map((h) => el("th", { scope: "col", role: "columnheader" }, h))));
  function cells(heads, tds) {
    tds.forEach((td, i) => { td.setAttribute("role", "cell"); td.setAttribute("data-label", heads[i]); });
    return el("tr", { role: "row" }, tds);
  }

  const tone = { HOT: "bad", UNKNOWN: "warn", WARM: "warn", COOLING: "busy", HELD: "good", FREE: "calm" };
  const rolloutTone = {
    succeeded: "good", failed: "bad", rolled_back: "bad", rolling_back: "bad", paused: "warn", aborted: "warn", superseded: "calm",
    running: "busy", baking: "busy", waiting: "calm",
  };
  const classOf = { a: "applied", f: "failed", u: "unreachable", r: "rolled_back", x: "superseded", s: "skipped", p: "pending" };
  const words = (s) => String(s).replaceAll("_", " ");
  const state = (name, tones) => el("span", { class: "state " + (tones[name] || "calm") }, words(name));

  // prose sets what stands between backquotes as code.
  const prose = (t) => String(t || "").split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));

  function span(seconds) {
    if (seconds === null || seconds === undefined) return "unknown";
    const s = Math.max(0, Math.floor(seconds));
    if (s < 60) return s + "s";
    if (s < 3600) return Math.floor(s / 60) + "m" + (s % 60 ? (s % 60) + "s" : "");
    if (s < 86400) return Math.floor(s / 3600) + "h" + Math.floor((s % 3600) / 60) + "m";
    return Math.floor(s / 86400) + "d" + Math.floor((s % 86400) / 3600) + "h";
  }
  function stamp(t) {
    const d = new Date(t);
    if (!t || isNaN(d) || d.getUTCFullYear() < 2000) return "";
    return d.toISOString().replace("T", " ").slice(0, 19) + " UTC";
  }
  const time = (t) => el("time", { datetime: t }, stamp(t));

  let setup = { prefix: "", actions: false };
  let page = null; // {name, id, source, data: something came; still: when clocks stopped}
  const since = () => performance.now() / 1000;

  // --- the connection ---

  function link(cls, text) {
    if ($("link-text").textContent !== text) $("link-text").textContent = text;
    $("link").className = "link " + cls;
  }

  function open(view, id, events) {
    const url = new URL("/events", location);
    url.searchParams.set("view", view);
    if (id) url.searchParams.set("id", id);
    const src = new EventSource(url);
    src.onopen = () => { page.first = true; };
    src.onerror = () => {
      if (page.source === src) page.still ??= since();
      link("lost", src.readyState === EventSource.CLOSED ? "not connected: trying again" : "connection lost: trying again");
      if (src.readyState === EventSource.CLOSED && page && page.source === src) {
        // The server refused: a stream that ends so is not tried again by itself.
        const mine = page;
        setTimeout(() => { if (page === mine) { src.close(); mine.source = open(view, id, events); } }, 2000);
      }
    };
    for (const [name, take] of Object.entries({ summary, failed, ...events })) {
      src.addEventListener(name, (e) => {
        if (!page || page.source !== src) return;
        if (events[name]) page.data = true;
        take(JSON.parse(e.data));
        connected();
      });
    }
    return src;
  }

  // connected says whether what is shown is what stands in Consul.
  function connected() {
    if (page.summary && page.summary.away_since) link("lost", "Consul does not answer");
    else if (page.data || page.summary && page.summary.ready) link("live", "live");
    else link("", "reading Consul");
  }

  function summary(s) {
    page.summary = s;
    // Whether what was held is held still is not known: its clocks stand.
    if (!s.away_since) page.still = null;
    else page.still ??= since();
    troubles([...away(), ...s.troubles]);
    const by = s.suspended;
    renew($("brake"), by, () => (by ? el("p", {}, "All automatic breaking is suspended by ", by.by || "somebody", stamp(by.at) ? " at " + stamp(by.at) : "", by.reason ? ": " + by.reason : "") : []));
    const hot = s.counts.HOT || 0;
    document.title = (hot ? "(" + hot + " HOT) " : "") + page.title + " · aimlock";
    if (page.onSummary) page.onSummary(s);
  }
  const away = () => (page.summary && page.summary.away_since ? ["Consul does not answer. What is shown was read before " + stamp(page.summary.away_since) + ", and may not be so any more."] : []);
  function failed(f) { troubles([...away(), f.error]); }
  function troubles(list) {
    const box = $("troubles");
    const text = list.join("\n");
    if (box.dataset.text === text) return;
    box.dataset.text = text;
    put(box, ...list.map((t) => el("p", {}, t)));
  }

  // --- locks ---

  function holderText(l) {
    const h = l.holder;
    if (!l.session) return "";
    if (!h) return "unknown";
    const who = [];
    if (h.tool) who.push(h.tool);
    if (l.operation) who.push(l.operation);
    if (h.pid) who.push("pid " + h.pid);
    if (h.host) who.push("on " + h.host);
    return who.join(", ") || "unknown";
  }
  function why(l) {
    if (l.rule) return l.rule + ": " + l.reason;
    return (l.pending || []).join("; ");
  }
  const held = (l, got) => (l.session ? (l.held_for === null ? "unknown" : span(l.held_for + l.ago + Math.max(0, (page.still ?? since()) - got))) : "");
  const started = (r) => (r.lock.held_for === null || r.lock.held_for === undefined ? Infinity : r.got - r.lock.ago - r.lock.held_for);

  function locksPage() {
    const rows = new Map();
    const tiles = el("ul", { class: "tiles", "aria-label": "Locks by state" });
    const body = el("tbody", { role: "rowgroup" });
    const heads = ["Lock", "State", "Held for", "Holder", "Why", "Next"];
    const note = el("p", { class: "soft" });
    const past = el("div");
    let free = { set: [], more: 0 };
    const find = el("input", { type: "search", placeholder: "name, holder or rule", "aria-label": "Show only locks that contain", oninput: draw });
    put(main,
      el("h1", {}, "Locks"), tiles,
      el("div", { class: "tools" }, find),
      el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Locks" }, el("table", { role: "table" }, headRow(heads), body)),
      note, past);
    let more = 0;
    // The last ones that were let go: where their story is found.
    function drawFree(want) {
      const list = free.set.filter((f) => !want || [f.name, f.holder, f.ended].join(" ").toLowerCase().includes(want));
      renew(past, list, () => (!list.length ? [] : [
        el("h2", {}, "Free"),
        table(["Lock", "Last holder", "Ended", "When"], list.map((f) => [el("a", { href: "#/lock/" + encodeURIComponent(f.name) }, f.name), f.holder, f.ended, stamp(f.at)])),
        el("p", { class: "soft" }, "Nobody holds these. Each tells its story." + (free.more ? " " + free.more + " more are free: aimlock lock list -all." : ""))]));
    }
    function draw() {
      const want = find.value.toLowerCase();
      const list = [...rows.values()].filter((r) => !want || [r.lock.name, holderText(r.lock), why(r.lock), r.lock.state].join(" ").toLowerCase().includes(want));
      list.sort((a, b) => b.lock.gravity - a.lock.gravity || started(a) - started(b) || (a.lock.key < b.lock.key ? -1 : 1));
      put(body, ...list.map((r) => r.tr));
      drawFree(want);
      note.textContent = !page.summary || !page.summary.ready ? (page.summary && page.summary.away_since ? "No lock could be read." : "Reading all locks…")
        : rows.size === 0 ? "No lock is held." : more ? more + " more are held; the gravest are shown." : list.length === 0 ? "None of them." : "";
    }
    function row(l) {
      const age = el("td", { class: "n" });
      const r = { lock: l, got: since(), age };
      age.textContent = held(l, r.got);
      r.tr = cells(heads, [
        el("td", { class: "name" }, el("a", { href: "#/lock/" + encodeURIComponent(l.name) }, l.name)),
        el("td", {}, state(l.state, tone)), age,
        el("td", { class: "w" }, holderText(l) + (l.progress && l.progress.total ? ", " + l.progress.done + " of " + l.progress.total + " " + (l.progress.unit || "") : "")),
        el("td", { class: "w" }, prose(why(l))), el("td", { class: "w" }, prose(l.next))]);
      return r;
    }
    page.tick = () => { for (const r of rows.values()) { const t = held(r.lock, r.got); if (r.age.textContent !== t) r.age.textContent = t; } };
    page.onSummary = (s) => {
      put(tiles, ...["HOT", "UNKNOWN", "WARM", "HELD", "COOLING"].map((n) => el("li", { class: s.counts[n] ? tone[n] : "soft" }, el("b", {}, s.ready ? s.counts[n] || 0 : "–"), n)));
      draw();
    };
    page.source = open("locks", "", {
      locks(ch) {
        if (page.first) { rows.clear(); page.first = false; }
        for (const k of ch.gone) rows.delete(k);
        for (const l of ch.set) {
          const old = rows.get(l.key);
          rows.set(l.key, row(l));
          if (old && old.lock.state !== l.state) say(l.name + " is " + l.state);
        }
        more = ch.more;
        draw();
      },
      free(list) { free = list; draw(); },
    });
  }

  function lockPage(name) {
    const head = el("div");
    const rest = el("div");
    const tools = el("div", { class: "tools" });
    if (setup.actions) {
      tools.append(
        el("button", { type: "button", onclick: () => ask("request", "Ask the holder to let go", name, "The holder finishes in good order. Nothing is broken.") }, "Ask to let go"),
        el("button", { type: "button", onclick: () => ask("approve", "Approve a break", name, "Lets the lock be broken for an hour while its present holder has it, where the policy wants an approval.") }, "Approve"),
        el("button", { type: "button", class: "grave", "data-verb": "break", onclick: () => ask("break", "Break the lock", name, "Only a HOT lock is broken, and only as its policy lets it be.") }, "Break"));
    }
    const needs = el("div");
    put(main, el("p", {}, el("a", { href: "#/locks" }, "All locks")), head, needs, tools, rest);
    let last = null;
    function draw(l) {
      const got = since();
      if (last && last.state !== l.state) say(l.name + " is " + l.state);
      last = l;
      for (const b of tools.children) b.disabled = !l.session || b.dataset.verb === "break" && l.state !== "HOT";
      const age = el("dd", {}, held(l, got) || "not held");
      page.tick = () => { const t = held(l, got) || "not held"; if (age.textContent !== t) age.textContent = t; };
      put(head,
        el("h1", {}, l.name, " ", state(l.state, tone)),
        l.cause ? el("p", { class: "cause" }, el("b", {}, "What caused it: "), prose(l.cause)) : "",
        l.rule ? el("p", {}, "Rule ", el("b", {}, l.rule), ": ", prose(l.reason)) : "",
        l.refused ? el("p", { class: "warn" }, "It is not broken now: ", prose(l.refused)) : "",
        (l.pending || []).map((t) => el("p", { class: "warn" }, t)),
        l.silence ? el("p", { class: "warn" }, "Silenced until ", stamp(l.silence.expires), " by ", l.silence.by || "somebody", l.silence.reason ? ": " + l.silence.reason : "") : "",
        el("p", {}, "Next: ", prose(l.next)));
      const p = l.progress;
      const facts = [["Held for", age], ["Holder", holderText(l) || "nobody"], [l.session ? "Rollout" : "Last rollout", l.rollout ? el("dd", {}, rolloutLink(l.rollout)) : null], ["User", l.holder && l.holder.user], ["Token", l.token], ["Session", l.session],
        ["Progress", p && p.total !== null && p.total !== undefined ? p.done + " of " + p.total + (p.unit ? " " + p.unit : "") + (p.age !== null ? ", last written " + span(p.age) + " before this was read" : "") : null],
        ["Policy", l.policy || "none matches: it has no rules"], ["Key", l.key],
        ["Pause owed", l.quiesce_owed ? span(l.quiesce_owed) : null],
        ["Allocation", l.allocation ? l.allocation.id + ", job " + l.allocation.job : null]];
      put(rest,
        el("dl", {}, facts.filter(([, v]) => v !== null && v !== undefined && v !== "").map(([k, v]) => el("div", {}, el("dt", {}, k), v instanceof Node ? v : el("dd", {}, String(v))))),
        l.rules.length ? [el("h2", {}, "Rules"), table(["Kind", "Rule", "Now", "Condition"], l.rules.map((r) => [r.kind, r.name, el("span", { class: r.value === "holds" ? (r.kind === "hot" ? "bad" : "warn") : r.value === "unknown" ? "warn" : "" }, r.value), el("span", {}, el("code", {}, r.when), r.why ? el("div", { class: "soft" }, r.why) : "")]))] : "",
        l.evidence.length ? [el("h2", {}, "Evidence"), table(["Fact", "Value", "Source", "Observed"], l.evidence.map((e) => [el("code", {}, e.fact), e.known ? el("code", {}, typeof e.value === "number" ? String(Math.round(e.value * 10) / 10) : JSON.stringify(e.value)) : el("span", { class: "warn" }, "unknown: " + e.why), e.source, stamp(e.observed_at)]))] : "",
        el("h2", {}, "Timeline"),
        l.timeline.length ? el("ol", { class: "line" }, l.timeline.map((e) => el("li", {}, e.at_latest ? "by " : "", time(e.at), e.text, e.detail ? el("div", { class: "soft" }, e.detail) : ""))) : el("p", { class: "soft" }, "Nothing is on record."));
    }
    page.source = open("lock", name, {
      lock: draw,
      rollouts(list) {
        renew(needs, list, () => list.map((r) => [
          el("p", {}, "Unfinished rollout that takes it: ", rolloutLink(r.id), " ", badge(r, r)),
          r.words ? el("p", { class: "warn" }, prose(r.words[0].toUpperCase() + r.words.slice(1))) : ""]));
      },
    });
  }

  // output is what a command said; where it is long it scrolls, by keyboard too.
  const output = (t) => el("pre", t.length > 1500 || t.split("\n").length > 10 ? { tabindex: 0, role: "group", "aria-label": "Output" } : {}, t);

  // What is one short word stays whole, and what is long breaks anywhere.
  const cellClass = (t) => (t.length > 60 ? "w" : t.length <= 40 && !t.includes(" ") ? "t" : null);

  function table(heads, rows) {
    return el("div", { class: "wide", tabindex: 0 }, el("table", { role: "table" }, headRow(heads),
      el("tbody", { role: "rowgroup" }, rows.map((r) => cells(heads, r.map((c) => {
        const td = el("td", {}, c === null || c === undefined ? "" : c);
        const cls = cellClass(td.textContent);
        if (cls) td.className = cls;
        return td;
      }))))));
  }

  // --- rollouts ---

  const order = ["applied", "failed", "unreachable", "rolled_back", "superseded", "skipped", "pending"];
  function bar(counts, total) {
    const b = el("div", { class: "bar", role: "img", "aria-label": countsText(counts) || "no nodes" });
    for (const c of order) {
      if (!counts[c] || !total || c === "pending") continue;
      const i = el("i", { class: c });
      i.style.width = (100 * counts[c]) / total + "%";
      b.append(i);
    }
    return b;
  }
  const countsText = (counts) => order.filter((c) => counts[c]).map((c) => counts[c] + " " + words(c)).join(", ");
  const applied = (counts, total) => (counts.applied || 0) + " of " + total + " applied";
  // stageText is one line about the nodes of a stage, as "rollout status" has it.
  function stageText(counts, total) {
    const rest = countsText({ ...counts, applied: 0, pending: 0 });
    return applied(counts, total) + (rest ? ": " + rest : "");
  }
  const key = (counts) => el("ul", { class: "key" }, order.filter((c) => counts[c]).map((c) => el("li", {}, el("i", { class: c, "aria-hidden": "true" }), counts[c] + " " + words(c))));

  const lockLink = (l) => [el("a", { href: "#/lock/" + encodeURIComponent(l.name) }, l.name), " ", l.state ? state(l.state, tone) : ""];
  const rolloutLink = (id) => el("a", { href: "#/rollout/" + encodeURIComponent(id) }, id);
  // badge is a rollout's state: one that nobody drives is no more than said to be at work.
  const badge = (v, d) => state(v.state, d && d.driven === false && rolloutTone[v.state] === "busy" ? { [v.state]: "warn" } : rolloutTone);
  // standing says since when a rollout is paused and what ends that, and that nobody
  // drives it, with what does.
  function standing(v, d) {
    if (!d) return [];
    const hot = d.locks.filter((l) => l.state === "HOT");
    return [
      v.paused_since ? el("p", {}, "Paused since ", time(v.paused_since)) : "",
      (d.ways || []).map((w) => el("p", { class: "way" }, w.what[0].toUpperCase() + w.what.slice(1) + ": ", el("code", {}, w.command))),
      d.words ? el("p", { class: "warn" }, prose(d.words[0].toUpperCase() + d.words.slice(1))) : "",
      hot.map((l) => el("p", {}, "Lock ", lockLink(l))),
    ];
  }

  function rolloutsPage() {
    const body = el("tbody", { role: "rowgroup" });
    const heads = ["Rollout", "State", "Stage", "Nodes", "Why", "Started"];
    const note = el("p", { class: "soft" }, "Reading…");
    put(main, el("h1", {}, "Rollouts"),
      el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Rollouts" }, el("table", { role: "table" }, headRow(heads), body)), note);
    page.source = open("rollouts", "", {
      rollouts(list) {
        note.textContent = list.length ? "" : "No rollout is on record.";
        put(body, ...list.map(({ id, view: v, driving: d }) => cells(heads, [
          el("td", { class: "name" }, rolloutLink(id)),
          el("td", {}, badge(v, d)), el("td", {}, v.stage || ""),
          el("td", {}, bar(v.counts, v.total), el("small", { class: "soft" }, v.total ? applied(v.counts, v.total) : "")),
          el("td", { class: "w" }, v.reason || v.note || "", standing(v, d)), el("td", { class: "t" }, stamp(v.started_at))])));
      },
    });
  }

  // grid draws a stage's nodes, one square each, and tells which one is pointed at.
  function grid() {
    const canvas = el("canvas", { role: "img" });
    const box = el("div", {}, canvas);
    let d = null, cols = 1, step = 8;
    function draw() {
      if (!d) return;
      const width = Math.max(60, Math.floor(box.clientWidth || 600));
      const n = d.end - d.from;
      const css = getComputedStyle(document.documentElement), colours = {};
      for (const [letter, name] of Object.entries(classOf)) colours[letter] = css.getPropertyValue("--" + name);
      // The largest squares with which a third of the window holds them all; never
      // larger than text, nor too small to be pointed at.
      const tall = Math.max(160, innerHeight / 3);
      step = Math.round(1.1 * parseFloat(css.fontSize));
      const fit = () => Math.ceil(n / Math.max(1, Math.floor(width / step))) * step <= tall;
      while (step > 6 && !fit()) step--;
      cols = Math.max(1, Math.floor(width / step));
      const rows = Math.ceil(n / cols), scale = window.devicePixelRatio || 1;
      canvas.width = cols * step * scale;
      canvas.height = Math.max(1, rows * step * scale);
      canvas.style.width = cols * step + "px";
      canvas.style.height = rows * step + "px";
      const g = canvas.getContext("2d");
      g.scale(scale, scale);
      const gap = step > 8 ? 2 : 1;
      for (let i = 0; i < n; i++) {
        const c = d.classes[d.from + i];
        g.fillStyle = colours[c] || colours.p;
        const x = (i % cols) * step, y = Math.floor(i / cols) * step, s = step - gap;
        if (c !== "f" && c !== "u") { g.fillRect(x, y, s, s); continue; }
        // Where colours are not told apart, shapes are; and what is looked for is larger.
        g.fillRect(x - gap / 2, y - gap / 2, step, step);
        g.strokeStyle = css.getPropertyValue("--bg");
        g.lineWidth = Math.max(1, s / 9);
        g.beginPath();
        g.moveTo(x, y); g.lineTo(x + s, y + s);
        if (c === "f") { g.moveTo(x + s, y); g.lineTo(x, y + s); }
        g.stroke();
      }
    }
    canvas.addEventListener("mousemove", (e) => {
      const i = Math.floor(e.offsetY / step) * cols + Math.floor(e.offsetX / step);
      canvas.title = d && i >= 0 && d.from + i < d.end ? d.nodes[d.from + i] + ": " + words(classOf[d.classes[d.from + i]]) : "";
    });
    return {
      box, draw,
      set(data) {
        if (d && d.from === data.from && d.end === data.end && d.classes === data.classes) return;
        d = data;
        const counts = {};
        for (let i = d.from; i < d.end; i++) { const c = classOf[d.classes[i]] || "pending"; counts[c] = (counts[c] || 0) + 1; }
        canvas.setAttribute("aria-label", "Nodes: " + (countsText(counts) || "none"));
        draw();
        return counts;
      },
    };
  }

  function rolloutPage(id) {
    const head = el("div"), drive = el("div"), tools = el("div", { class: "tools" }), stages = el("div");
    const gates = el("div"), failures = el("div"), breaks = el("div"), log = el("div");
    const found = el("p", { role: "status" });
    const find = el("input", { type: "search", placeholder: "name of a node", "aria-label": "Find a node", oninput: look });
    put(main, el("p", {}, el("a", { href: "#/rollouts" }, "All rollouts")), head, tools, el("div", { class: "tools" }, find), found, stages, gates, failures, breaks, log);
    if (setup.actions) {
      for (const [verb, title, text, grave] of [
        ["pause", "Pause", "Nothing more is assigned until it is resumed. Nodes that have their order go on."],
        ["resume", "Resume", "Goes on. Failures that paused it are forgiven."],
        ["promote", "Promote", "Ends this stage's bake, and takes its gates as passed."],
        ["rollback", "Roll back", "Every node that got an order goes back to its own last good file, at once.", true],
        ["abort", "Abort", "Ends the rollout where it stands.", true]]) {
        tools.append(el("button", { type: "button", class: grave ? "grave" : null, "data-verb": verb, onclick: () => ask(verb, title + " the rollout", id, text, data ? { stage: data.view.stage, pause: data.view.pause } : {}) }, title));
      }
    }
    const grids = new Map();
    let data = null, was = "", driving = null;
    const mark = el("span");
    function drawDriving() {
      if (!data) return;
      const v = data.view, d = driving;
      renew(mark, [v.state, d && d.driven], () => badge(v, d));
      renew(drive, [v.state, v.paused_since, d], () => [
        standing(v, d && { ...d, locks: [] }),
        d && d.locks.length ? el("p", {}, d.locks.length > 1 ? "Its locks: " : "Its lock: ", d.locks.map((l, i) => [i ? ", " : "", lockLink(l)])) : ""]);
    }
    function look() {
      const want = find.value.trim().toLowerCase();
      if (!want || !data) { found.textContent = ""; return; }
      const hits = [];
      let n = 0;
      data.nodes.forEach((name, i) => { if (name.toLowerCase().includes(want) && ++n <= 8) hits.push(name + ": " + words(classOf[data.classes[i]] || "pending")); });
      found.textContent = n ? hits.join("; ") + (n > 8 ? "; and " + (n - 8) + " more" : "") : "No node of that name.";
    }
    function draw(d) {
      data = d;
      const v = d.view;
      if (was && was !== v.state) say(id + " is " + words(v.state));
      was = v.state;
      put(head,
        el("h1", {}, v.id, " ", mark),
        v.reason ? el("p", { class: "warn" }, v.reason) : "", drive,
        key(v.counts), bar(v.counts, v.total),
        el("dl", {}, [["Nodes", v.total + (v.in_flight ? ", " + v.in_flight + " in flight" : "")], ["Stage", v.stage], ["Config", (v.configs || []).map((c) => c.name + " " + c.revision).join(", ")],
          ["Token", v.token], ["Started", stamp(v.started_at)], ["Finished", stamp(v.finished_at)]].filter(([, x]) => x).map(([k, x]) => el("div", {}, el("dt", {}, k), el("dd", {}, String(x))))),
        el("p", {}, el("a", { href: "/report?id=" + encodeURIComponent(id) }, "Its report, on one page")));
      drawDriving();
      for (const b of tools.children) b.disabled = !!v.finished_at || (b.dataset.verb === "resume") !== (v.state === "paused") && ["pause", "resume"].includes(b.dataset.verb);
      const list = d.stages.slice();
      const end = list.length ? list[list.length - 1].end : 0;
      if (end < d.nodes.length) list.push({ name: "in no stage", from: end, end: d.nodes.length });
      for (const s of list) {
        let g = grids.get(s.name);
        if (!g) {
          g = { ...grid(), count: el("span", { class: "soft" }) };
          grids.set(s.name, g);
          stages.append(el("h2", {}, s.name, " ", g.count), g.box);
        }
        const c = g.set({ from: s.from, end: s.end, classes: d.classes, nodes: d.nodes });
        if (c) g.count.textContent = d.nodes.length ? stageText(c, s.end - s.from) : "its nodes are not kept any more";
      }
      look();
      renew(gates, v.gates || [], () => (v.gates || []).length ? [el("h2", {}, "Gates"), table(["Stage", "Gate", "State", "Answers", "Last"], v.gates.map((g) => [g.stage, g.name, words(g.state || ""), (g.passed || 0) + " pass, " + (g.failed || 0) + " fail, " + (g.unknown || 0) + " unknown", (g.last || "") + (g.value && !(g.why || "").includes(g.value) && (g.kind !== "exec" || !g.why) ? " (" + g.value + ")" : "") + (g.why ? ": " + g.why : "")]))] : []);
      renew(failures, [d.failures, d.failures_more], () => d.failures.length ? [el("h2", {}, "Failures"), table(["Node", "Stage", "Class", "Why"], d.failures.map((f) => [f.node, f.stage, words(f.class), output(f.why || "")])), d.failures_more ? el("p", { class: "soft" }, "And " + d.failures_more + " more: they are in the grid above, and in the report.") : ""] : []);
      renew(breaks, d.breaks, () => d.breaks.length ? [el("h2", {}, "Breaks of its locks"), table(["Lock", "At", "By", "Rule", "Outcome"], d.breaks.map((b) => [b.lock, stamp(b.at), b.by, b.rule + ": " + b.reason, b.outcome]))] : []);
      renew(log, d.events, () => [el("h2", {}, "Log"),
        el("ol", { class: "line" }, d.events.map((e) => el("li", {}, time(e.at), e.node ? e.node + ": " : "", e.text)))]);
    }
    page.resize = () => { for (const g of grids.values()) g.draw(); };
    page.source = open("rollout", id, {
      rollout: draw,
      driving(d) {
        if (d && d.words && !(driving && driving.words)) say(d.words);
        driving = d;
        drawDriving();
      },
    });
  }

  // --- policies ---

  function policiesPage() {
    const box = el("div");
    put(main, el("h1", {}, "Policies"), box);
    page.source = open("policies", "", {
      policies(d) {
        const a = d.active;
        put(box,
          el("h2", {}, "Applied"),
          a ? el("p", {}, "Serial " + a.serial + ", hash ", el("code", {}, (a.hash || "").slice(0, 12)), a.by ? ", by " + a.by : "", a.at ? ", " + stamp(a.at) : "", a.reason ? ": " + a.reason : "") : el("p", {}, "Nothing was ever applied: anybody's policies may break aimlock's own locks, and nobody's those of other tools."),
          d.why ? el("p", { class: "warn" }, d.why) : "",
          a && a.hash !== d.hash ? el("p", { class: "warn" }, "This page judges by other policies than those applied.") : "",
          a && a.hash !== d.hash ? (a.files || []).map((f) => [el("h3", {}, f.name), el("pre", { tabindex: 0 }, f.text)]) : "",
          el("h2", {}, "What this page judges by"),
          el("p", {}, d.shipped ? "The policies that are shipped, " : "", "hash ", el("code", {}, d.hash.slice(0, 12))),
          d.files.map((f) => [el("h3", {}, f.name), el("pre", { tabindex: 0 }, f.text)]));
      },
    });
  }

  // --- actions ---

  const TOKEN = "aimlock-consul-token";
  // seen is what the order is bound to: what stood on the page when it was given.
  function ask(verb, title, target, text, seen = {}) {
    const d = $("ask");
    const typed = el("input", { id: "ask-name", autocomplete: "off", autocapitalize: "off", spellcheck: "false" });
    const reason = el("input", { id: "ask-reason", autocomplete: "off", maxlength: 500 });
    const token = el("input", { id: "ask-token", type: "password", autocomplete: "off" });
    token.value = sessionStorage.getItem(TOKEN) || "";
    const answer = el("p", { role: "alert" });
    const go = el("button", { type: "submit", class: "grave", disabled: true }, title);
    typed.addEventListener("input", () => { go.disabled = typed.value !== target; });
    const form = el("form", {},
      el("h2", { id: "ask-title" }, title), el("p", {}, text),
      el("label", { for: "ask-name" }, "Type ", el("b", {}, target), " to confirm"), typed,
      el("label", { for: "ask-reason" }, "Why (it stands in the record)"), reason,
      el("label", { for: "ask-token" }, "Your Consul token (kept in this tab only; empty: none)"), token,
      answer,
      el("div", { class: "tools" }, el("button", { type: "button", onclick: () => d.close() }, "Cancel"), go));
    form.addEventListener("submit", async (e) => {
      e.preventDefault();
      go.disabled = true;
      answer.className = "soft";
      answer.textContent = "Under way…";
      if (token.value) sessionStorage.setItem(TOKEN, token.value); else sessionStorage.removeItem(TOKEN);
      try {
        const r = await fetch("/act", {
          method: "POST",
          headers: { "Content-Type": "application/json", "X-Aimlock-Csrf": setup.csrf || "", ...(token.value ? { "X-Consul-Token": token.value } : {}) },
          body: JSON.stringify({ do: verb, target, confirm: typed.value, reason: reason.value, ...seen }),
        });
        const body = await r.json();
        answer.className = r.ok ? "good" : "bad";
        answer.textContent = r.ok ? body.result : body.error;
        if (r.ok) { say(body.result); form.querySelector("button[type=button]").textContent = "Close"; } else go.disabled = typed.value !== target;
      } catch {
        answer.className = "bad";
        answer.textContent = "The server did not answer: look whether it was done before you try again.";
        go.disabled = typed.value !== target;
      }
    });
    put(d, form);
    d.showModal();
    typed.focus();
  }

  const say = (text) => { $("said").textContent = text; };

  // --- pages ---

  const titles = { locks: "Locks", lock: "Lock", rollouts: "Rollouts", rollout: "Rollout", policies: "Policies", none: "No such page" };
  function nonePage() {
    put(main, el("h1", {}, page.title),
      el("p", {}, "There is no page at ", el("code", {}, location.hash), "."),
      el("p", {}, "There are: ", [["#/locks", "all locks"], ["#/rollouts", "all rollouts"], ["#/policies", "the policies"]].map(([to, t], i) => [i ? ", " : "", el("a", { href: to }, t)]), "; a lock is at ", el("code", {}, "#/lock/NAME"), ", and a rollout at ", el("code", {}, "#/rollout/ID"), "."));
    page.source = open("policies", "", {}); // its own is not shown: what each page shows is
  }
  function show() {
    const m = /^#\/(locks|rollouts|policies|lock\/(.+)|rollout\/(.+))$/.exec(location.hash);
    if (!m) {
      if (location.hash === "#main") return;
      // What was meant is known of these two.
      const near = /^#\/(lock|rollout)s\/(.+)$/.exec(location.hash);
      if (near || location.hash.length < 3) {
        location.replace(near ? "#/" + near[1] + "/" + near[2] : "#/locks");
        return;
      }
    }
    if (page && page.source) page.source.close();
    if ($("ask").open) $("ask").close();
    troubles([]);
    const name = !m ? "none" : m[2] ? "lock" : m[3] ? "rollout" : m[1];
    let id = "";
    const given = m ? m[2] || m[3] || "" : "";
    try { id = decodeURIComponent(given); } catch { id = given; }
    page = { name, id, title: id || titles[name], first: true };
    document.title = page.title + " · aimlock";
    for (const a of document.querySelectorAll("nav a")) {
      if (a.dataset.page === name || a.dataset.page === name + "s") a.setAttribute("aria-current", "page"); else a.removeAttribute("aria-current");
    }
    put(main, el("h1", {}, page.title), el("p", { class: "soft" }, "Reading…"));
    ({ locks: locksPage, lock: () => lockPage(id), rollouts: rolloutsPage, rollout: () => rolloutPage(id), policies: policiesPage, none: nonePage })[name]();
    if (show.before) main.focus({ preventScroll: true });
    show.before = true;
    scrollTo(0, 0);
  }
  addEventListener("hashchange", show);
  addEventListener("pagehide", () => { if (page && page.source) page.source.close(); });
  addEventListener("pageshow", (e) => { if (e.persisted) show(); });
  $("jump").addEventListener("click", (e) => { e.preventDefault(); main.focus(); });
  let resizing = 0;
  const redraw = () => { clearTimeout(resizing); resizing = setTimeout(() => { if (page && page.resize) page.resize(); }, 120); };
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  setInterval(() => { if (page && page.tick) page.tick(); }, 1000);
  fetch("/setup").then((r) => r.json()).then((s) => { setup = s; }).catch(() => {}).finally(show);
})();
