"use strict";
// Sort a table by the column whose head is pressed; without this script it stands as it was written.
for (const table of document.querySelectorAll(".sortable table")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const text = (row, at) => row.cells[at].textContent.trim();
  const key = (row, at) => Number.parseFloat(text(row, at).replace(/[,>]/g, ""));
  const compare = (one, other, at, sign) => {
    if (at === 0) return sign * text(one, 0).localeCompare(text(other, 0));
    const [left, right] = [key(one, at), key(other, at)];
    return Number.isNaN(left) - Number.isNaN(right) || sign * (left - right) || 0;
  };
  heads.forEach((head, at) => {
    if (head.classList.contains("left")) return;  // bars
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.ariaSort !== "ascending";
      heads.forEach((other) => { other.ariaSort = null; });
      head.ariaSort = up ? "ascending" : "descending";
      body.append(...[...body.rows].sort((one, other) => compare(one, other, at, up ? 1 : -1)));
    });
  });
}
