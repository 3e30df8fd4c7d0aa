"use strict";
// Sorts a table by the column whose heading is pressed; rows without a value stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const heading = button.parentElement;
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const key = button.dataset.key;
      const value = (body) => body.getAttribute("data-" + key);
      const compare = (a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === null || right === null) return (left === null) - (right === null);
        const difference = Number(left) - Number(right);
        return sign * (Number.isNaN(difference) ? left.localeCompare(right) : difference);
      };
      table.append(...[...table.tBodies].sort(compare));
    });
  }
}
// Paper cannot be unfolded.
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
