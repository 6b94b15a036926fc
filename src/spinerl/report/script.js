"use strict";
// All of this is also there without a script: as plain tooltips, and as parts to open.
const tip = document.getElementById("tip");

function showTip(rect) {
  tip.textContent = rect.dataset.text;
  tip.hidden = false;
  const box = rect.getBoundingClientRect();
  const left = box.left + box.width / 2 + 14;
  const flip = left + tip.offsetWidth > document.documentElement.clientWidth - 8;
  tip.style.left = Math.max(8, flip ? left - tip.offsetWidth - 28 : left) + scrollX + "px";
  tip.style.top = box.top + 8 + scrollY + "px";
}

// A chart: the text of a step follows the pointer, and the arrow keys.
function readChart(hits) {
  const plot = hits.closest("svg");
  const rects = [...hits.children];
  let at = rects.length - 1;
  const leave = () => { rects[at].classList.remove("at"); tip.hidden = true; };
  const go = (index) => {
    leave();
    at = Math.min(Math.max(index, 0), rects.length - 1);
    rects[at].classList.add("at");
    showTip(rects[at]);
  };
  for (const rect of rects) {
    const title = rect.querySelector("title");
    rect.dataset.text = title.textContent;
    title.remove();
    rect.addEventListener("pointerenter", () => showTip(rect));
  }
  hits.addEventListener("pointerleave", () => { tip.hidden = true; });
  plot.tabIndex = 0;
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) go(at); });
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rects.length - 1 }[event.key];
    if (event.key === "Escape") leave();
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(to);
  });
}

// Responses of several steps: a slider shows one of the parts.
function addSlider(box) {
  const parts = [...box.children];
  const names = parts.map((part) => part.querySelector("summary").textContent);
  const [line, label, input, value] = ["p", "label", "input", "span"].map((name) => document.createElement(name));
  line.className = "slider";
  label.textContent = box.dataset.label;
  value.className = "at";
  Object.assign(input, { type: "range", min: 0, max: parts.length - 1, step: 1, value: parts.length - 1 });
  const show = () => {
    parts.forEach((part, index) => { part.hidden = index !== Number(input.value); part.open = true; });
    value.textContent = names[input.value];
    input.setAttribute("aria-valuetext", names[input.value]);
  };
  input.addEventListener("input", () => { box.dataset.chosen = names[input.value]; show(); });
  label.append(input);
  line.append(label, value);
  box.classList.add("sliding");
  box.prepend(line);
  show();
}

function enliven(part) {
  part.querySelectorAll(".hits").forEach(readChart);
  part.querySelectorAll(".moments").forEach(addSlider);
}

enliven(document);
