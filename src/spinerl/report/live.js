"use strict";
// A run in progress: asks for the page every few seconds, and replaces those of its sections that have changed.
const main = document.querySelector("main");
const said = document.getElementById("live-status");
const button = document.createElement("button");
const decode = (text) => new DOMParser().parseFromString(text, "text/html");
const policyOf = (page) => page.querySelector("meta[http-equiv=Content-Security-Policy]").content;
let shown = []; // the sections' source, as it was sent
let tag = `"${document.body.dataset.tag}"`;
let paused = false;

const clock = () => new Date().toLocaleTimeString();

// What the reader has opened, chosen and reached in a section.
function stateOf(part) {
  const opened = [...part.querySelectorAll("details[data-key]")].map((one) => [one.dataset.key, one.open]);
  const chosen = [...part.querySelectorAll("[data-chosen]")].map((one) => [one.dataset.key, one.dataset.chosen]);
  const scrolled = [...part.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
  const focusable = [...part.querySelectorAll("a, button, input, summary, [tabindex]")];
  return { opened, chosen, scrolled, focus: focusable.indexOf(document.activeElement) };
}

function restore(part, state) {
  for (const [key, open] of state.opened) {
    const found = part.querySelector(`details[data-key="${CSS.escape(key)}"]`);
    if (found) found.open = open;
  }
  for (const [key, name] of state.chosen) {
    const input = part.querySelector(`[data-key="${CSS.escape(key)}"] > .slider input`);
    const names = input ? [...input.closest(".moments").querySelectorAll(":scope > details > summary")] : [];
    const index = names.findIndex((one) => one.textContent === name);
    if (index >= 0) {
      input.value = index;
      input.dispatchEvent(new Event("input"));
    }
  }
  part.querySelectorAll(".scroll").forEach((one, index) => { one.scrollLeft = state.scrolled[index] ?? 0; });
  if (state.focus >= 0) {
    [...part.querySelectorAll("a, button, input, summary, [tabindex]")][state.focus]?.focus({ preventScroll: true });
  }
}

// The element that the reader looks at: the last one with an id that begins above the middle of the window.
function anchor() {
  const all = [...main.querySelectorAll("h2[id], h3[id], figure[id], .strip[id]")];
  const found = all.filter((one) => one.getBoundingClientRect().top < innerHeight / 2);
  const last = found[found.length - 1];
  return last && scrollY > 0 ? [last.id, last.getBoundingClientRect().top] : null;
}

function replace(page) {
  const sections = [...page.querySelector("main").children];
  const sources = sections.map((one) => one.outerHTML);
  const place = anchor();
  tip.hidden = true;
  if (sections.length === shown.length) {
    sections.forEach((section, index) => {
      if (sources[index] === shown[index]) return;
      const before = main.children[index];
      const state = stateOf(before);
      before.replaceWith(section);
      enliven(section);
      restore(section, state);
    });
  } else {
    const state = stateOf(main);
    main.replaceChildren(...sections);
    enliven(main);
    restore(main, state);
  }
  shown = sources;
  document.title = page.title;
  document.getElementById("live-written").replaceWith(page.getElementById("live-written"));
  const now = place && document.getElementById(place[0]);
  if (now) scrollBy({ top: now.getBoundingClientRect().top - place[1], behavior: "instant" });
}

async function look() {
  try {
    const answer = await fetch("/", { headers: { "If-None-Match": tag }, cache: "no-store" });
    if (paused) return;
    if (answer.status === 200) {
      const page = decode(await answer.text());
      if (policyOf(page) !== policyOf(document)) return location.reload(); // another version of spinerl
      tag = answer.headers.get("ETag");
      replace(page);
    } else if (answer.status !== 304) {
      throw new Error(answer.statusText);
    }
    said.textContent = "Live.";
  } catch {
    said.textContent = `No answer since ${said.dataset.last ?? clock()}: the watch has ended, or is busy. Trying again.`;
    return;
  }
  said.dataset.last = clock();
}

async function keepLooking() {
  if (!paused && !document.hidden) await look();
  setTimeout(keepLooking, 1000 * Number(document.body.dataset.every));
}

document.addEventListener("visibilitychange", () => { if (!paused && !document.hidden) look(); });
button.type = "button";
button.textContent = "Pause";
button.addEventListener("click", () => {
  paused = !paused;
  button.textContent = paused ? "Go on" : "Pause";
  said.textContent = paused ? `Paused at ${clock()}.` : "Live.";
  if (!paused) look();
});
said.after(button);
setTimeout(keepLooking, 1000 * Number(document.body.dataset.every));
