// A click on a column's head sorts its table: numbers by value (of "0.12 ± 0.01" the first), else by letters.
document$.subscribe(() => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search"); // a dialog needs a name
  for (const head of document.querySelectorAll("article table th")) {
    if (head.querySelector("button") || !head.textContent.trim()) continue;
    const button = document.createElement("button");
    button.className = "sort";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const body = head.closest("table").tBodies[0], column = head.cellIndex;
      const down = head.getAttribute("aria-sort") !== "descending";
      const value = (row) => parseFloat(row.cells[column].textContent.replace(/,/g, ""));
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const order = isNaN(x) || isNaN(y)
          ? a.cells[column].textContent.localeCompare(b.cells[column].textContent) : y - x;
        return down ? order : -order;
      });
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  }
});
