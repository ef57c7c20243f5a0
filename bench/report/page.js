"use strict";

// Tables: a click on a head sorts by its column, another one backwards, a third restores the order of the report.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const report = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      heads.forEach((other) => { other.ariaSort = other === head ? order : "none"; });
      body.append(...(order === "none" ? report : sorted(report, column, order === "ascending" ? 1 : -1)));
    });
  });
}

function sorted(rows, column, sign) {
  const key = (row) => {
    const cell = row.cells[column];
    const number = cell.dataset.sort;
    return number === undefined ? cell.textContent : number === "" ? null : Number(number);
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing stays last
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  };
  return rows.map((row) => [key(row), row]).sort((a, b) => compare(a[0], b[0])).map((pair) => pair[1]);
}

// Points: what one is, shown beside it when it is pointed at or focused; arrow keys go from one to the next.
const tip = document.getElementById("tip");

for (const point of document.querySelectorAll(".point")) {
  const title = point.querySelector("title");
  point.ariaLabel = title.textContent;
  title.remove(); // or the browser would show it as well
  point.addEventListener("pointerenter", () => show(point));
  point.addEventListener("focus", () => show(point));
  point.addEventListener("pointerleave", hide);
  point.addEventListener("blur", hide);
  point.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const points = [...point.closest("svg").querySelectorAll(".point:not(.seed)")];
    const next = step && points[points.indexOf(point) + step];
    if (event.key === "Escape") hide();
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}

function show(point) {
  const box = point.getBoundingClientRect();
  tip.textContent = point.ariaLabel;
  tip.hidden = false;
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  const above = box.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(6, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 6))}px`;
  tip.style.top = `${above > 0 ? above : box.bottom + 6}px`;
}

function hide() {
  tip.hidden = true;
}

addEventListener("scroll", hide, { passive: true });

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
