(() => {
  "use strict";
  const table = document.getElementById("board");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const status = document.getElementById("count");
  const place = new Map(rows.map((row, i) => [row, i]));

  const value = (row, column) => {
    const text = row.cells[column].dataset.value;
    return text === undefined ? null : column ? Number(text) : text;
  };

  const order = (column, up) => (a, b) => {
    const x = value(a, column), y = value(b, column);
    // a row without a number stays below, whichever way
    if (x === null || y === null) return (x === null) - (y === null) || place.get(a) - place.get(b);
    const found = column ? x - y : x.localeCompare(y);
    return (up ? found : -found) || place.get(a) - place.get(b);
  };

  const sort = (column) => {
    const head = heads[column];
    const now = head.getAttribute("aria-sort");
    // the first press shows the best on top
    const first = column === 0 || head.dataset.lower === "1" ? "ascending" : "descending";
    const second = first === "ascending" ? "descending" : "ascending";
    const next = now === first ? second : first;
    heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", next);
    body.append(...rows.toSorted(order(column, next === "ascending")));
  };

  heads.forEach((head, column) => {
    const label = head.querySelector(".sort");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...label.childNodes);
    label.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(column));
  });

  const words = document.getElementById("words");
  const kinds = [...document.querySelectorAll("input[name=kind]")];
  const columns = [...document.querySelectorAll("input[name=column]")];

  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shownKinds = new Set(kinds.filter((box) => box.checked).map((box) => box.value));
    let count = 0;
    rows.forEach((row) => {
      const text = row.dataset.text;
      row.hidden = !shownKinds.has(row.dataset.kind) || !wanted.every((word) => text.includes(word));
      count += !row.hidden;
    });
    status.textContent = `${count} of ${rows.length} rows`;
  };

  const choose = () => {
    columns.forEach((box) => {
      const at = Number(box.value);
      [table.tHead.rows[0], ...rows].forEach((row) => { row.cells[at].hidden = !box.checked; });
      document.getElementById(`strip-${at}`).hidden = !box.checked;
    });
  };

  words.addEventListener("input", filter);
  kinds.forEach((box) => box.addEventListener("change", filter));
  columns.forEach((box) => box.addEventListener("change", choose));
  document.getElementById("controls").hidden = false;
  filter();
})();
