(() => {
  "use strict";
  for (const element of $$(".segments, .search, .keys")) element.hidden = false;

  const clips = $$(".clip"), bands = new Map($$(".band").map((band) => [band.dataset.event, band]));
  const table = $("#table");
  let rows = table ? [...table.tBodies[0].rows] : [];
  const rowOf = new Map(rows.map((row) => [row.dataset.event, row]));

  // One event is chosen at a time: its band, its row and its picture.
  const detail = $("#detail"), picture = $("#d-picture");
  let chosen = null;
  const choose = (key) => {
    const band = bands.get(key), row = rowOf.get(key);
    if (!row) return;
    if (chosen) {
      bands.get(chosen)?.setAttribute("aria-pressed", "false");
      rowOf.get(chosen).setAttribute("aria-selected", "false");
    }
    chosen = key;
    band?.setAttribute("aria-pressed", "true");
    row.setAttribute("aria-selected", "true");
    setStop(rows, row);
    if (band) setStop([...bands.values()], band);
    const image = $("img", row);
    picture.hidden = !image;
    if (image) picture.src = image.src;
    $("#d-name").textContent = `${row.dataset.name}, ${$(".path", row).textContent}`;
    $("#d-facts").textContent = row.dataset.facts;
    detail.hidden = false;
    // Only the table's own box moves: the page stays where the reader is.
    const box = $("#scroll"), head = table.tHead.offsetHeight;
    if (row.offsetTop - head < box.scrollTop || row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = row.offsetTop - head;
    }
  };
  const setStop = (all, one) => {
    for (const each of all) each.setAttribute("tabindex", each === one ? "0" : "-1");
  };
  const shownBands = (clip) => (clip.hidden ? [] : $$(".band", clip));

  // Timelines: one tab stop, arrows move between events and clips.
  const first = bands.values().next().value;
  if (first) setStop([...bands.values()], first);
  for (const [key, band] of bands) {
    band.addEventListener("click", () => { choose(key); band.focus({ preventScroll: true }); });
    band.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const all = clips.flatMap(shownBands), at = all.indexOf(band);
      const clip = clips.indexOf(band.closest(".clip"));
      const nearest = (candidates) => {
        const list = candidates.map(shownBands).find((found) => found.length);
        const x = Number($("rect", band).getAttribute("x"));
        const gap = (other) => Math.abs(Number($("rect", other).getAttribute("x")) - x);
        return list && list.reduce((best, each) => (gap(each) < gap(best) ? each : best));
      };
      const to = {
        ArrowRight: () => all[at + 1],
        ArrowLeft: () => all[at - 1],
        ArrowDown: () => nearest(clips.slice(clip + 1)),
        ArrowUp: () => nearest(clips.slice(0, clip).reverse()),
        Home: () => all[0],
        End: () => all[all.length - 1],
      }[event.key];
      if (to) {
        event.preventDefault();
        const next = to();
        if (next) { next.focus(); choose(next.dataset.event); }
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(key);
        if (event.key === "Enter") rowOf.get(key).focus({ preventScroll: true });
      }
    });
  }

  // The table: a click or Enter shows the event on its timeline.
  const toBand = (key, focus) => {
    choose(key);
    const band = bands.get(key);
    if (!band) return;
    const clip = band.closest(".clip");
    if (clip.hidden) { wanted = "all"; search.value = ""; apply(); }
    clip.scrollIntoView({ block: "nearest" });
    if (focus) band.focus({ preventScroll: true });
  };
  if (table) {
    const body = table.tBodies[0];
    body.addEventListener("click", (event) => {
      const row = event.target.closest("tr");
      if (row && !String(getSelection())) toBand(row.dataset.event, false);
    });
    body.addEventListener("keydown", (event) => {
      const at = rows.indexOf(event.target.closest("tr"));
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1, PageDown: at + 8, PageUp: at - 8 }[event.key];
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (to !== undefined) {
        event.preventDefault();
        const row = rows[Math.max(0, Math.min(rows.length - 1, to))];
        row.focus({ preventScroll: true });
        choose(row.dataset.event);
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        toBand(rows[at].dataset.event, true);
      }
    });
    const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
    for (const button of $$("[data-sort]", table)) {
      button.addEventListener("click", () => {
        const { sort: key, kind } = button.dataset, header = button.closest("th");
        const was = header.getAttribute("aria-sort");
        const direction = was ? (was === "ascending" ? "descending" : "ascending") : key === "peak" || key === "length" ? "descending" : "ascending";
        for (const each of $$("th[aria-sort]", table)) each.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        rows.sort((a, b) => sign * (kind === "number" ? Number(a.dataset[key]) - Number(b.dataset[key]) : collator.compare(a.dataset[key], b.dataset[key])));
        body.append(...rows);
      });
    }
  }

  // Filters and search.
  const search = $("#search"), status = $("#shown"), filters = $$("[data-filter]");
  let wanted = "all";
  const apply = () => {
    const text = search.value.trim().toLocaleLowerCase();
    let shown = 0;
    for (const clip of clips) {
      const fits = (wanted === "all" || clip.dataset.kind === wanted) && clip.dataset.name.toLocaleLowerCase().includes(text);
      clip.hidden = !fits;
      shown += fits;
    }
    for (const button of filters) button.setAttribute("aria-pressed", String(button.dataset.filter === wanted));
    status.textContent = shown < clips.length ? `Showing ${shown} of ${clips.length} clips.` : "";
    $("#empty").hidden = shown > 0;
    const stop = [...bands.values()].find((band) => band.getAttribute("tabindex") === "0");
    if (stop && stop.closest(".clip").hidden) {
      const visible = clips.flatMap(shownBands)[0];
      if (visible) setStop([...bands.values()], visible);
    }
  };
  for (const button of filters) button.addEventListener("click", () => { wanted = button.dataset.filter; apply(); });
  search.addEventListener("input", apply);
})();
