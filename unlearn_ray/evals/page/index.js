(() => {
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
        // Numbers first, then text; without a value, or with a dash for one: last, either way.
        const worth = (row) => {
          const text = (row.cells[column].dataset.value ?? row.cells[column].textContent).trim();
          if (/^[-–—]?$/.test(text)) return { rank: 2, value: "" };
          const number = Number(text.replace(/[,\s]|%$/g, ""));
          return Number.isNaN(number) ? { rank: 1, value: text } : { rank: 0, value: number };
        };
        const compare = (a, b) => {
          if (a.rank !== b.rank) return a.rank === 2 || b.rank === 2 ? a.rank - b.rank : sign * (a.rank - b.rank);
          if (a.rank === 2) return 0;
          return sign * (a.rank === 0 ? a.value - b.value : a.value.localeCompare(b.value, undefined, { numeric: true }));
        };
        const rows = [...body.rows].map((row) => ({ row, worth: worth(row) }));
        body.append(...rows.sort((a, b) => compare(a.worth, b.worth)).map((each) => each.row));
      });
    });
  }
})();
