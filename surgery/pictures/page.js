"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const tips = read("tips"), rows = read("rows"), tip = byId("tip");

  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8));
    const top = y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 18;
    tip.style.left = left + "px";
    tip.style.top = top + "px";
  };
  const show = (lines, x, y) => {
    tip.replaceChildren(...lines.map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      return row;
    }));
    tip.hidden = false;
    place(x, y);
  };
  const hide = () => { tip.hidden = true; };
  const told = (target) => {
    if (!(target instanceof Element)) return null;
    const one = target.closest("[data-i],[data-tip]");
    if (!one) return null;
    return one.dataset.i === undefined ? one.dataset.tip.split("\n") : tips[+one.dataset.i];
  };
  document.addEventListener("mouseover", (event) => {
    const lines = told(event.target);
    if (lines) show(lines, event.clientX, event.clientY); else hide();
  });
  document.addEventListener("mousemove", (event) => { if (!tip.hidden && told(event.target)) place(event.clientX, event.clientY); });
  document.addEventListener("focusin", (event) => {
    const lines = told(event.target);
    if (!lines) return hide();
    const box = event.target.getBoundingClientRect();
    show(lines, box.left, box.bottom);
    event.target.setAttribute("aria-describedby", "tip");
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  for (const table of document.querySelectorAll("table.heat")) {
    const cells = [...table.tBodies[0].rows].map((row) => [...row.cells].filter((cell) => cell.tagName === "TD"));
    const first = table.querySelector("td[data-i]");
    for (const row of cells) for (const cell of row) if (cell.dataset.i !== undefined) cell.tabIndex = cell === first ? 0 : -1;
    table.addEventListener("keydown", (event) => {
      const step = moves[event.key], here = event.target.closest("td[data-i]");
      if (!step || !here) return;
      let y = cells.findIndex((row) => row.includes(here)), x = cells[y].indexOf(here);
      do { y += step[0]; x += step[1]; } while (cells[y] && cells[y][x] && cells[y][x].dataset.i === undefined);
      const next = cells[y] && cells[y][x];
      if (!next) return;
      event.preventDefault();
      here.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  const count = rows.T.length, names = new Array(count);
  for (let i = 0, n = 0; i < count; i++) {
    const parts = rows.patterns[rows.T[i]];
    let name = parts[0];
    for (let p = 1; p < parts.length; p++) name += rows.N[n++] + parts[p];
    names[i] = name;
  }
  const units = ["B", "kB", "MB", "GB", "TB"];
  const size = (bytes) => {
    let unit = 0, value = bytes;
    while (value >= 1000 && unit < 4) { value /= 1000; unit++; }
    return (unit ? +value.toPrecision(3) : value) + " " + units[unit];
  };
  const number = (value) => value === null ? "–" : value === -1 ? "∞" : value === 0 ? "0" : value < 0.001 ? value.toExponential() : String(value);
  const share = (value) => value === null ? "–" : +(100 * value).toPrecision(3) + " %";
  const columns = [
    ["name", (i) => names[i], null],
    ["dtype", (i) => rows.kinds[rows.K[i]][0], null],
    ["shape", (i) => rows.kinds[rows.K[i]][1], null],
    ["bytes", (i) => rows.kinds[rows.K[i]][2], size],
  ];
  if (rows.R) {
    columns.push(["change", (i) => rows.R[i] === -1 ? Infinity : rows.R[i], (v) => number(v === Infinity ? -1 : v)]);
    columns.push(["changed", (i) => rows.C[i], share]);
    if (rows.merging) columns.push(["erased", (i) => rows.E[i], share]);
    columns.push(["rank", (i) => rows.Q[i], number]);
  }
  if (rows.V) columns.push(["verdict", (i) => rows.verdicts[rows.V[i]], null]);
  if (rows.shards.length > 1) columns.push(["shard", (i) => rows.shards[rows.S[i]], null]);

  const natural = new Intl.Collator("en", { numeric: true });
  const all = Array.from({ length: count }, (_, i) => i);
  const rank = new Int32Array(count);
  all.forEach((i) => { rank[i] = i; });
  let sorted = 0, down = false, asked = "", shown = 100, order = all;
  const compare = (of) => (a, b) => {
    const x = of(a), y = of(b);
    if (x === y) return a - b;
    if (x === null || x === "") return 1;
    if (y === null || y === "") return -1;
    const way = typeof x === "string" ? natural.compare(x, y) : x - y;
    return (down ? -way : way) || a - b;
  };
  const text = (column, i) => { const value = column[1](i); return column[2] ? column[2](value) : value; };
  const draw = () => {
    const body = byId("body");
    body.replaceChildren(...order.slice(0, shown).map((i) => {
      const row = document.createElement("tr");
      for (const column of columns) {
        const cell = document.createElement("td");
        cell.textContent = text(column, i);
        if (column[0] === "verdict" || column[0] === "shard") cell.className = "left";
        row.append(cell);
      }
      return row;
    }));
    const more = byId("more"), rest = order.length - shown;
    more.hidden = rest <= 0;
    more.textContent = "Show " + Math.min(rest, 500) + " more of " + rest;
  };
  const say = (words) => { byId("said").textContent = words; };
  const counted = () => {
    const left = rows.left ? "; " + rows.left + " more have no room here: surgery inspect --tensors lists them" : "";
    say((asked ? order.length + " of " + count : count) + " tensors" + left);
  };
  const update = () => {
    const kept = asked ? all.filter((i) => names[i].toLowerCase().includes(asked)) : all.slice();
    order = sorted === 0 ? (down ? kept.reverse() : kept) : kept.sort(compare(columns[sorted][1]));
    draw();
    counted();
  };
  columns.forEach((column, at) => {
    const head = document.createElement("th"), button = document.createElement("button");
    head.scope = "col";
    if (column[0] === "verdict" || column[0] === "shard") head.className = "left";
    button.type = "button";
    button.textContent = column[0];
    button.addEventListener("click", () => {
      down = sorted === at ? !down : column[2] !== null;
      sorted = at;
      for (const other of byId("heads").children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      update();
    });
    head.append(button);
    byId("heads").append(head);
  });
  byId("heads").children[0].setAttribute("aria-sort", "ascending");
  byId("find").addEventListener("input", (event) => { asked = event.target.value.trim().toLowerCase(); shown = 100; update(); });
  byId("more").addEventListener("click", () => { shown += 500; draw(); });
  const clean = (value) => String(value === null ? "" : value).replace(/[\t\n\r]/g, " ");
  const table = () => [columns.map((column) => column[0]).join("\t"), ...order.map((i) => columns.map((column) => clean(column[1](i))).join("\t"))].join("\n");
  byId("copy").addEventListener("click", async () => {
    const words = table();
    try {
      await navigator.clipboard.writeText(words);
    } catch {
      const area = document.createElement("textarea");
      area.value = words;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    say(order.length + " tensors copied");
  });
  byId("list").hidden = false;
  update();
})();
