"use strict";
const table = document.getElementById("all");
if (table) {
  const rows = [...table.tBodies[0].rows];
  const compare = (a, b, sign) =>
    (a === "–") - (b === "–") || sign * (parseFloat(a) - parseFloat(b) || a.localeCompare(b));
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("th");
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = row => row.cells[head.cellIndex].textContent.trim();
    rows.sort((a, b) => compare(text(a), text(b), up ? 1 : -1));
    for (const row of rows) table.tBodies[0].append(row);
  });
  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const texts = new Map(
    rows.map(row => [row, [...row.cells].map(cell => cell.textContent).join("\n")]));
  const pattern = word => {
    const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return isNaN(word)  // a word begins as it was typed ("symmetric" is not "asymmetric")
      ? new RegExp("(?<![\\p{L}\\p{N}])" + escaped, "iu")
      : new RegExp("(?<!\\S)" + escaped + "(?!\\S)");  // a number stands alone
  };
  const apply = () => {
    const patterns = filter.value.split(/\s+/).filter(word => word).map(pattern);
    for (const row of rows) row.hidden = !patterns.every(each => each.test(texts.get(row)));
    const n = rows.filter(row => !row.hidden).length;
    shown.textContent = shown.dataset.text.replace("{shown}", n);
  };
  filter.addEventListener("input", apply);
  document.getElementById("filtering").hidden = false;
  apply();
}
