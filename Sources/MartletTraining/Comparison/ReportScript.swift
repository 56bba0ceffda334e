/// The report's script: tooltips, hiding arms, sorting the table. Everything is there to read without it.
enum ReportScript {
  static let javaScript = """
    (function () {
      "use strict";
      var root = document.documentElement, tip = document.createElement("div");
      root.classList.add("js");
      tip.id = "tip";
      tip.setAttribute("aria-hidden", "true");
      document.body.appendChild(tip);
      document.querySelectorAll(".mark").forEach(function (mark) {
        var text = mark.getAttribute("data-tip"), title = mark.querySelector("title");
        if (title) title.remove();
        mark.setAttribute("aria-label", text);
        function show(event) {
          tip.textContent = text;
          tip.style.opacity = 1;
          var box = tip.getBoundingClientRect();
          tip.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
          tip.style.top = (event.clientY - box.height - 12 < 4 ? event.clientY + 18 : event.clientY - box.height - 12) + "px";
        }
        mark.addEventListener("pointermove", show);
        mark.addEventListener("pointerdown", show);
        mark.addEventListener("pointerleave", function () { tip.style.opacity = 0; });
      });
      document.querySelectorAll(".chip").forEach(function (chip) {
        chip.addEventListener("click", function () {
          var isShown = chip.getAttribute("aria-pressed") !== "true";
          chip.setAttribute("aria-pressed", isShown);
          document.querySelectorAll(".plots .a" + chip.dataset.arm).forEach(function (part) { part.classList.toggle("off", !isShown); });
        });
      });
      document.querySelectorAll("table.sortable").forEach(function (table) {
        var heads = table.tHead.rows[0].cells;
        Array.prototype.forEach.call(heads, function (head, column) {
          var button = document.createElement("button");
          button.className = "s";
          button.type = "button";
          button.textContent = head.textContent;
          head.textContent = "";
          head.appendChild(button);
          head.setAttribute("aria-sort", "none");
          button.addEventListener("click", function () {
            var isDescending = column > 0 ? head.getAttribute("aria-sort") !== "descending" : head.getAttribute("aria-sort") === "ascending";
            Array.prototype.forEach.call(heads, function (other) { other.setAttribute("aria-sort", "none"); });
            head.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
            var rows = Array.prototype.slice.call(table.tBodies[0].rows);
            rows.sort(function (a, b) {
              var x = a.cells[column].dataset.v, y = b.cells[column].dataset.v;
              if (column === 0) return (isDescending ? -1 : 1) * x.localeCompare(y);
              // An empty value stands at the end whichever way.
              if (x === "" || y === "") return (x === "") - (y === "");
              return (isDescending ? -1 : 1) * (x - y);
            });
            rows.forEach(function (row) { table.tBodies[0].appendChild(row); });
          });
        });
      });
    })();
    """
}
