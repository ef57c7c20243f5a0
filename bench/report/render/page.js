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

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.values)")) details.open = true;
});
