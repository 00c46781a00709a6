"use strict";
// Sorting, searching and pointing; what is shown without it is in the page itself.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [INDEX, NAME, MIOU, ACCURACY, CLASSES] = [0, 1, 2, 3, 4];
  const text = (value, digits = 4) => (value === null ? "–" : value.toFixed(digits));
  const element = (tag, content, parent) => {
    const made = document.createElement(tag);
    made.textContent = content;
    if (parent) parent.append(made);
    return made;
  };

  // === The table of classes ===

  const heads = [...document.querySelectorAll(".classes thead th")];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "ascending";
      // Scores begin with the lowest, names with the order of the data set.
      const sign = up ? -1 : 1;
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", up ? "descending" : "ascending");
      const body = document.querySelector(".classes tbody");
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what is absent comes last
        return sign * (Number(x) - Number(y));
      });
      body.append(...rows);
    });
  });

  // === The confusion matrix ===

  const readout = document.getElementById("readout");
  const n = data.classes.length;
  const counts = new Map();
  const truths = new Array(n).fill(0);
  data.confusion[0].forEach((row, k) => {
    counts.set(row * n + data.confusion[1][k], data.confusion[2][k]);
    truths[row] += data.confusion[2][k];
  });
  const tell = (row, column) => {
    if (row < 0 || column < 0 || row >= n || column >= n) return;
    const count = counts.get(row * n + column) || 0;
    const share = truths[row] ? (100 * count) / truths[row] : 0;
    const what = row === column ? "found" : `taken for ${data.classes[column]}`;
    const of = truths[row] ? `${share.toFixed(2)} %` : "nothing, it does not occur";
    readout.textContent = `${data.classes[row]}, ${what}: ${of} (${count.toLocaleString("en")} pixels)`;
  };
  const table = document.querySelector(".matrix tbody");
  const picture = document.getElementById("matrix");
  if (table) {
    const point = (event) => {
      const cell = event.target.closest("td");
      if (cell) tell(cell.parentNode.rowIndex - 1, cell.cellIndex - 1);
    };
    table.addEventListener("pointermove", point);
    table.addEventListener("click", point);
  }
  if (picture) {
    const map = picture.parentNode;
    const point = (event) => {
      const box = picture.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * n);
      const row = Math.floor(((event.clientY - box.top) / box.height) * n);
      map.querySelectorAll(".at").forEach((span) => span.classList.remove("at"));
      const [a, b] = [map.querySelector(".rows").children[row], map.querySelector(".cols").children[column]];
      if (a && b) [a, b].forEach((span) => span.classList.add("at"));
      tell(row, column);
    };
    picture.addEventListener("pointermove", point);
    picture.addEventListener("click", point);
  }

  // === Images ===

  const search = document.getElementById("search");
  const order = document.getElementById("order");
  const found = document.getElementById("found");
  const matching = document.getElementById("matching");
  const groups = [...document.querySelectorAll(".group")].filter((group) => group !== matching);
  const homes = groups.map((group) => [...group.querySelectorAll(".card")]);
  const cards = new Map(homes.flat().map((card) => [Number(card.id.slice(6)), card]));
  const listing = document.querySelector(".listing tbody");
  const more = document.getElementById("more");
  const PAGE = 100;
  let rows = [];
  let listed = 0;

  // The one class that is asked for, by its whole name or as the only one with such letters.
  const asked = (query) => {
    const names = data.classes.map((name) => name.toLowerCase());
    const whole = names.indexOf(query);
    if (whole >= 0) return [whole];
    return names.flatMap((name, i) => (name.includes(query) ? [i] : []));
  };
  const select = () => {
    const query = search.value.trim().toLowerCase();
    const down = order.value === "down" ? -1 : 1;
    const classes = query ? asked(query) : [];
    const picked = [];
    for (const image of data.images) {
      const has = classes.filter((i) => image[CLASSES][i] && image[CLASSES][i][1]);
      const named = query && image[NAME].toLowerCase().includes(query);
      if (query && !has.length && !named) continue;
      const iou = has.length ? Math.min(...has.map((i) => image[CLASSES][i][0])) : null;
      picked.push([image, iou]);
    }
    const key = ([image, iou]) => (iou === null ? image[MIOU] : iou);
    picked.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return down * (x - y) || a[0][INDEX] - b[0][INDEX];
    });
    return { query, classes, picked };
  };
  const list = () => {
    for (const [image, iou] of rows.slice(listed, listed + PAGE)) {
      const row = element("tr", "", listing);
      const name = element("td", "", row);
      if (cards.has(image[INDEX])) {
        element("a", image[NAME], name).href = `#image-${image[INDEX]}`;
      } else {
        name.textContent = image[NAME];
      }
      element("td", iou === null ? "" : text(iou), row);
      element("td", text(image[MIOU]), row);
      element("td", text(image[ACCURACY]), row);
    }
    listed = Math.min(listed + PAGE, rows.length);
    more.hidden = listed >= rows.length;
    more.textContent = `more (${rows.length - listed})`;
  };
  const update = () => {
    const { query, classes, picked } = select();
    document.querySelectorAll(".chips .at").forEach((chip) => chip.classList.remove("at"));
    const narrowed = query !== "" || order.value === "down";
    groups.forEach((group, i) => {
      group.hidden = narrowed;
      if (!narrowed) group.querySelector(".cards").append(...homes[i]);
    });
    matching.hidden = !narrowed;
    const shown = picked.flatMap(([image]) => (cards.has(image[INDEX]) ? [cards.get(image[INDEX])] : []));
    if (narrowed) {
      // Those that do not match wait in their groups, which are hidden.
      groups.forEach((group, i) => group.querySelector(".cards").append(...homes[i]));
      matching.querySelector(".cards").append(...shown);
      const names = new Set(classes.map((i) => data.classes[i]));
      for (const chip of matching.querySelectorAll(".chips li")) {
        if (names.has(chip.dataset.name)) chip.classList.add("at");
      }
    }
    const what = classes.length === 1 ? ` with ${data.classes[classes[0]]}` : "";
    found.textContent = query ? `${picked.length} images${what}, ${shown.length} of them shown` : "";
    document.querySelector(".of-class").textContent = classes.length === 1 ? `IoU of ${data.classes[classes[0]]}` : "";
    rows = picked;
    listed = 0;
    listing.textContent = "";
    list();
    if (data.unlisted && more.hidden) {
      more.hidden = false;
      more.disabled = true;
      more.textContent = `${data.unlisted} better ones are not listed`;
    }
  };
  if (search) {
    document.querySelector(".search").hidden = false;
    search.addEventListener("input", update);
    order.addEventListener("change", update);
    more.addEventListener("click", list);
    for (const link of document.querySelectorAll("[data-class]")) {
      link.addEventListener("click", () => {
        search.value = data.classes[link.dataset.class];
        order.value = "up";
        update();
      });
    }
    update();
  }

  // === One picture, large ===

  const large = document.getElementById("large");
  for (const button of document.querySelectorAll("figure button")) {
    button.addEventListener("click", () => {
      const small = button.querySelector("img");
      large.querySelector("img").src = small.src;
      large.querySelector("img").alt = large.querySelector("p").textContent = small.alt;
      large.showModal();
    });
  }
  large.addEventListener("click", (event) => event.target === large && large.close());
})();
