"use strict";
// Charts: the hover text of a step follows the pointer (without this script it is a plain tooltip).
const tip = document.getElementById("tip");
for (const hits of document.querySelectorAll(".hits")) {
  for (const rect of hits.children) {
    const title = rect.querySelector("title");
    const text = title.textContent;
    title.remove();
    rect.addEventListener("pointerenter", () => {
      tip.textContent = text;
      tip.hidden = false;
      const box = rect.getBoundingClientRect();
      const left = box.left + box.width / 2 + 14;
      const flip = left + tip.offsetWidth > document.documentElement.clientWidth - 8;
      tip.style.left = Math.max(8, flip ? left - tip.offsetWidth - 28 : left) + scrollX + "px";
      tip.style.top = box.top + 8 + scrollY + "px";
    });
  }
  hits.addEventListener("pointerleave", () => { tip.hidden = true; });
}
