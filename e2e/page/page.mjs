// Drives a real Chromium over the page of `aimlock ui`. The Go test beside it runs
// everything else: `ask(what)` has it do something and waits until it is done.
import { chromium } from "playwright-core";
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, browserPath, pictures] = process.argv.slice(2);
const axeSource = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function ask(what) {
  process.stdout.write("ask " + what + "\n");
  const { value, done } = await lines.next();
  if (done) throw new Error("the test ended while it was asked: " + what);
  return value;
}
let failures = 0;
function check(ok, what) {
  process.stdout.write((ok ? "ok " : "FAIL ") + what + "\n");
  if (!ok) failures++;
}

const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
const wrong = [];
page.on("pageerror", (e) => wrong.push("error: " + e.message));
page.on("dialog", (d) => { wrong.push("a dialog: " + d.message()); void d.dismiss(); });
page.on("request", (r) => { if (!r.url().startsWith(url) && !r.url().startsWith("data:")) wrong.push("a request to " + r.url()); });
page.on("console", (m) => { if (/Content Security Policy|TrustedHTML/i.test(m.text())) wrong.push(m.text()); });

// looks has axe look at a page at three sizes, and in both themes.
async function looks(name, at = page) {
  for (const [width, height, colorScheme] of [[360, 740, "light"], [1280, 900, "dark"], [3840, 2160, "light"], [360, 740, "dark"]]) {
    await at.setViewportSize({ width, height });
    await at.emulateMedia({ colorScheme });
    const across = await at.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    check(across <= 0, `${name} at ${width}, ${colorScheme}: nothing stands out at the side (${across})`);
    // The page's own policy would keep axe out of the page's world.
    const cdp = await context.newCDPSession(at);
    const { frameTree } = await cdp.send("Page.getFrameTree");
    const { executionContextId } = await cdp.send("Page.createIsolatedWorld", { frameId: frameTree.frame.id, worldName: "axe" });
    await cdp.send("Runtime.evaluate", { expression: axeSource + ";0", contextId: executionContextId });
    const { result } = await cdp.send("Runtime.evaluate", {
      expression: "axe.run().then(r => JSON.stringify(r.violations.filter(v => v.impact === 'serious' || v.impact === 'critical').map(v => v.id + ': ' + v.help + ' ' + v.nodes.map(n => n.target.join(' ')).slice(0, 3))))",
      contextId: executionContextId, awaitPromise: true, returnByValue: true,
    });
    check(result.value === "[]", `${name} at ${width}, ${colorScheme}: axe finds ${result.value}`);
    await cdp.detach();
    if (pictures) await at.screenshot({ path: `${pictures}/${name}-${width}-${colorScheme}.png` });
  }
  await at.setViewportSize({ width: 1280, height: 900 });
  await at.emulateMedia({ colorScheme: "light" });
}

// large is a rollout to 10,000 nodes, as the server would tell of it, in which nodes
// are in every class and some said much.
const large = (() => {
  const nodes = Array.from({ length: 10_000 }, (_, i) => "drone-" + String(i).padStart(5, "0") + ".hall-7.example");
  const classes = nodes.map((_, i) => (i % 97 === 3 ? "f" : i % 89 === 5 ? "u" : i > 9_000 ? "p" : i % 83 === 7 ? "r" : i % 79 === 9 ? "x" : i % 73 === 11 ? "s" : "a")).join("");
  const names = { a: "applied", f: "failed", u: "unreachable", r: "rolled_back", x: "superseded", s: "skipped", p: "pending" };
  const counts = {};
  for (const c of classes) counts[names[c]] = (counts[names[c]] || 0) + 1;
  const at = "2026-11-26T12:00:00Z", long = "unknown_directive_".repeat(20);
  const view = {
    id: "large", name: "large", state: "running", stage: "rest", counts, total: nodes.length, in_flight: 12, started_at: at, finished_at: null,
    reason: "", configs: [{ name: "aim_lock_config.conf", revision: "0f1e2d3c4b5a" }], token: 4711,
    gates: [{ stage: "tenth", name: "passing", state: "passed", passed: 3, failed: 0, unknown: 1, last: "pass", value: "99.7", why: long }],
  };
  const failures = [
    { node: nodes[3], stage: "canary", class: "failed", why: "reload: exit status 1\n" + long },
    { node: nodes[5], stage: "canary", class: "unreachable", why: "its agent is down" },
    { node: nodes[100], stage: "tenth", class: "failed", why: Array(40).fill("a line of what the command said").join("\n") },
  ];
  const breaks = [{ lock: "aim_lock_config.conf", at, by: "root@one", rule: "holder-dead", reason: "process 7 on one is gone", outcome: "taken" }];
  const events = [{ n: 1, at, kind: "stage", stage: "rest", text: 'stage "rest": nodes 1001 to 10000 of 10000' }, { n: 2, at, kind: "node", node: nodes[3], text: "failed: " + long }];
  return { view, stages: [{ name: "canary", from: 0, end: 10 }, { name: "tenth", from: 10, end: 1000 }, { name: "rest", from: 1000, end: 10_000 }], nodes, classes, failures, failures_more: 200, events, breaks };
})();

// squares finds what the grid shows: the colour below the point at which the
// page says that a node of one class stands.
async function squares(stage) {
  const canvas = page.locator("canvas").nth(stage);
  await canvas.scrollIntoViewIfNeeded();
  const box = await canvas.boundingBox();
  const seen = {};
  for (let x = 2; x < box.width && !(seen.applied && seen.failed); x += 3) {
    await canvas.hover({ position: { x, y: 2 } });
    const words = (await canvas.getAttribute("title")).split(": ")[1];
    if (!seen[words]) seen[words] = await canvas.evaluate((c, at) => [...c.getContext("2d").getImageData(at * devicePixelRatio, 2 * devicePixelRatio, 1, 1).data].join(), x);
  }
  return { seen, box };
}

const row = (name) => page.locator("tbody tr").filter({ has: page.getByRole("link", { name, exact: true }) });
const stateOf = (name, state) => row(name).locator(".state", { hasText: state }).waitFor();
const heading = (state) => page.locator("h1 .state", { hasText: state }).waitFor();

// paints loads the page several times, each with nothing in a cache, and notes when
// something was first seen of it. How fast that is depends on the machine: it is told.
async function paints(times) {
  const seen = [];
  for (let i = 0; i < times; i++) {
    const fresh = await browser.newContext();
    const one = await fresh.newPage();
    await one.goto(url);
    await one.waitForFunction(() => performance.getEntriesByName("first-contentful-paint").length > 0);
    seen.push(Math.round(await one.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime)));
    await fresh.close();
  }
  seen.sort((a, b) => a - b);
  process.stdout.write(`note first paint after ${seen[times >> 1]} ms in the median of ${times} loads: ${seen.join(", ")}\n`);
}

try {
  await paints(5);
  await page.goto(url);
  await page.getByRole("heading", { name: "Locks" }).waitFor();
  await page.getByText("No lock is held.").waitFor();

  // A break, live.
  await ask("attack");
  await page.locator("tbody tr", { hasText: "onerror=alert" }).first().waitFor();
  await ask("hold doomed");
  await stateOf("doomed", "HOT");
  check((await page.locator("tbody tr").first().innerText()).startsWith("doomed"), "the worst stands first");
  check(/HOT/.test(await page.title()), "the title says that a lock is HOT");
  await looks("locks");
  await page.setViewportSize({ width: 1000, height: 800 });
  const beyond = await page.locator(".wide").first().evaluate((e) => e.scrollWidth - e.clientWidth);
  check(beyond <= 0, `at 1000 all columns of the locks are seen (${beyond})`);
  if (pictures) await page.screenshot({ path: `${pictures}/locks-1000-light.png` });
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.getByRole("link", { name: "doomed", exact: true }).click();
  await heading("HOT");
  await page.getByText("What caused it:").waitFor();
  check(await page.locator("td code", { hasText: "holder.alive" }).count() > 0, "the evidence is shown");
  await looks("lock");

  // By keyboard alone: Break, the name, Enter.
  await page.getByRole("button", { name: "Break" }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  check(await page.evaluate(() => document.activeElement.id) === "ask-name", "the dialog begins at the name");
  await page.keyboard.type("doome");
  check(await page.getByRole("dialog").getByRole("button", { name: "Break the lock" }).isDisabled(), "half a name is not enough");
  await page.keyboard.type("d");
  await looks("dialog");
  await page.locator("#ask-name").focus();
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").getByText("by rule named").waitFor();
  await page.keyboard.press("Escape");
  await heading("FREE");
  await ask("lost doomed");
  await page.locator("ol.line li", { hasText: "broken, and the lock freed" }).first().waitFor();

  // What is free again is still found, with its story.
  await page.getByRole("link", { name: "Locks", exact: true }).click();
  await page.getByRole("heading", { name: "Free" }).waitFor();
  await row("doomed").filter({ hasText: "broken" }).waitFor();
  await looks("locks-free");
  await row("doomed").getByRole("link").click();
  await page.locator("ol.line li", { hasText: "broken, and the lock freed" }).first().waitFor();

  // An attack by a holder's record is text.
  await page.getByRole("link", { name: "Locks", exact: true }).click();
  for (const link of await page.locator("tbody a").all()) {
    if (!/<img/.test(await link.innerText())) continue;
    await link.click();
    await page.locator("h1", { hasText: "<img" }).waitFor();
    break;
  }
  check(await page.locator("main img, main script, main iframe, main b > b").count() === 0, "no element came from a record");

  // A rollout, live.
  await page.getByRole("link", { name: "Rollouts", exact: true }).click();
  await page.getByText("No rollout is on record.").waitFor();
  const id = await ask("rollout");
  await page.getByRole("link", { name: id }).waitFor();
  await looks("rollouts");
  await page.getByRole("link", { name: id }).click();
  await heading("baking");
  await page.locator("canvas").first().waitFor();
  await page.getByRole("button", { name: "Pause" }).click();
  await page.locator("#ask-name").fill(id);
  await page.locator("#ask-reason").fill("a look");
  await page.getByRole("dialog").getByRole("button", { name: "Pause the rollout" }).click();
  await page.getByRole("dialog").getByText("the rollout is paused").waitFor();
  await page.keyboard.press("Escape");
  await heading("paused");
  // How the pause ends, and the way to its lock and back.
  await page.getByText("Paused since").waitFor();
  await page.getByText("aimlock rollout resume -pause 1 " + id).waitFor();
  await page.getByText("Its lock").getByRole("link").click();
  const unfinished = page.getByText("Unfinished rollout that takes it");
  await unfinished.waitFor();
  await looks("lock-of-rollout");
  await unfinished.getByRole("link", { name: id }).click();
  await heading("paused");
  await page.goto(url + "#/no/such");
  await page.getByRole("heading", { name: "No such page" }).waitFor();
  await page.goto(url + "#/rollouts/" + id);
  await heading("paused");
  check(new URL(page.url()).hash === "#/rollout/" + id, "an address that is nearly right leads there");
  await page.getByRole("searchbox").fill("-n1");
  await page.getByText("n1: applied").first().waitFor();
  await looks("rollout");
  // Whoever resumes ends the pause that the page showed, and not the one after it.
  await page.getByRole("button", { name: "Resume" }).click();
  await page.locator("#ask-name").fill(id);
  await ask("pause anew");
  await page.getByRole("dialog").getByRole("button", { name: "Resume the rollout" }).click();
  await page.getByRole("dialog").getByText("it was paused anew since").waitFor();
  await page.keyboard.press("Escape");
  await heading("paused");
  await ask("resume");
  await heading("succeeded");
  await page.locator("h2", { hasText: "applied" }).first().waitFor();
  check(await page.getByRole("button", { name: "Abort" }).isDisabled(), "what has ended is not aborted");
  const report = await context.newPage();
  report.on("console", (m) => { if (/Content Security Policy/i.test(m.text())) wrong.push("report: " + m.text()); });
  await report.goto(new URL("/report?id=" + encodeURIComponent(id), url).href);
  await report.getByText("succeeded").first().waitFor();
  // Another one, which has nodes of every class and failures.
  await report.goto("file://" + await ask("report"));
  await report.locator("details").first().click();
  await looks("report", report);
  await report.close();

  // 10,000 nodes, some of which failed and said why.
  await page.route((u) => u.pathname === "/events" && u.searchParams.get("id") === "large", (r) => r.fulfill({ contentType: "text/event-stream", body: "retry: 600000\nevent: rollout\ndata: " + JSON.stringify(large) + "\n\n" }));
  await page.goto(url + "#/rollout/large");
  await heading("running");
  await looks("rollout-large");
  await page.waitForFunction(() => document.querySelectorAll("canvas")[2].offsetWidth > 1000);
  const { seen, box } = await squares(2);
  check(seen.applied && seen.failed && seen.applied !== seen.failed, "nodes that failed are told from others: " + JSON.stringify(seen));
  check(box.width * box.height >= 9_000 * 36 && box.height < 1500, `each node has a square that can be pointed at (${box.width} by ${box.height})`);

  await page.getByRole("link", { name: "Policies", exact: true }).click();
  await page.getByText("Nothing was ever applied").waitFor();
  await looks("policies");

  // Consul goes away, and comes back.
  await page.getByRole("link", { name: "Locks", exact: true }).click();
  await ask("hold kept");
  await stateOf("kept", "HELD");
  const linkText = (at) => at.locator("#link-text").innerText();
  check(await linkText(page) === "live", "it is live while Consul answers");
  await ask("stop consul");
  await page.locator("#troubles p").first().waitFor({ timeout: 120_000 });
  check(await row("kept").count() === 1, "what was seen last is still shown");
  const trouble = await page.locator("#troubles p").first().innerText();
  check(/^Consul does not answer\..* read before \d{4}-.* UTC,/.test(trouble), "it says when what it shows was read: " + trouble);
  check(await linkText(page) === "Consul does not answer", "it does not call itself live: " + (await linkText(page)));
  const ages = async (at) => (await at.locator("tbody td.n").allInnerTexts()).join();
  const late = await context.newPage();
  await late.goto(url);
  await late.locator("tbody tr", { hasText: "kept" }).waitFor();
  const before = [await ages(page), await ages(late)].join(" and ");
  await new Promise((r) => setTimeout(r, 2500));
  const after = [await ages(page), await ages(late)].join(" and ");
  check(after === before, "no clock runs on: " + before + ", then " + after);
  check(await ages(page) === await ages(late), "and all pages show one age: " + after);
  check(await linkText(late) === "Consul does not answer", "nor does one that is opened now call itself live");
  await late.close();
  await looks("locks-away");
  await ask("start consul");
  await page.waitForFunction(() => !document.querySelector("#troubles p"), null, { timeout: 120_000 });
  await ask("hold later");
  await stateOf("later", "HELD");
  check(await linkText(page) === "live", "it is live again");

  // And so does the server of the page.
  await ask("stop page");
  await page.getByText("trying again").waitFor();
  await ask("start page");
  await page.locator(".live").waitFor();
  await stateOf("later", "HELD");

  const weight = await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].filter((e) => !e.name.includes("/events")).reduce((n, e) => n + e.encodedBodySize, 0));
  process.stdout.write(`note the page weighs ${weight} bytes\n`);
  check(weight < 200 * 1024, `the page weighs ${weight} bytes`);
  check(wrong.length === 0, "nothing went wrong in the page: " + wrong.join("; "));
} catch (e) {
  check(false, e.message);
  process.stdout.write("note " + JSON.stringify({ url: page.url(), text: (await page.locator("body").innerText().catch(() => "")).slice(0, 2000), wrong }) + "\n");
} finally {
  await browser.close();
}
process.exit(failures ? 1 : 0);
