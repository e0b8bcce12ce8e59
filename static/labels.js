// Below the width of a table its rows become cards; each cell then says the name of its column.
"use strict";
for (const table of document.querySelectorAll("#result_list, .inline-group table")) {
  // Without the number of the column in the order, which stands beside its name.
  const names = Array.from(table.querySelectorAll("thead th"), (cell) => (cell.querySelector(".text") || cell).textContent.trim());
  for (const row of table.querySelectorAll("tbody tr")) {
    Array.from(row.cells).forEach((cell, number) => {
      cell.dataset.label = names[number] || "";
    });
  }
}
