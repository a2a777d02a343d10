// A click on a column's head sorts its table: numbers by value (of "0.12 ± 0.01" the first), else by letters.
document$.subscribe(() => {
  for (const head of document.querySelectorAll("article table th")) {
    head.tabIndex = 0;
    head.setAttribute("role", "button");
    const sort = () => {
      const rows = [...head.closest("table").tBodies[0].rows], column = head.cellIndex;
      const down = head.dataset.sorted !== "down";
      const value = (row) => parseFloat(row.cells[column].textContent.replace(/,/g, ""));
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const order = isNaN(x) || isNaN(y)
          ? a.cells[column].textContent.localeCompare(b.cells[column].textContent) : y - x;
        return down ? order : -order;
      });
      for (const other of head.parentElement.cells) delete other.dataset.sorted;
      head.dataset.sorted = down ? "down" : "up";
      head.closest("table").tBodies[0].append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
  }
});
