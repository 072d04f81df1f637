(() => {
  "use strict";
  for (const element of $$(".segments, .search, .opacity, .keys")) element.hidden = false;

  // Overlay opacity: one value for the table and the viewer.
  const sliders = $$("[data-opacity]");
  const setOpacity = (percent) => {
    const value = Math.max(0, Math.min(100, Number(percent)));
    root.style.setProperty("--heat", value / 100);
    for (const slider of sliders) {
      slider.value = value;
      $("output", slider.parentElement).textContent = `${value} %`;
    }
  };
  for (const slider of sliders) slider.addEventListener("input", () => setOpacity(slider.value));
  if (sliders.length) setOpacity(sliders[0].value);

  const table = $("#table");
  if (!table) return;
  const body = table.tBodies[0];
  let rows = [...body.rows];

  // The overlay's base is the row's own input picture, so that the file holds it once.
  for (const row of rows) {
    const stack = $(".stack", row);
    const input = $('[data-view="input"] img', row);
    if (stack && input) stack.prepend(input.cloneNode());
  }

  // Sorting: missing values stay last in both directions.
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  for (const button of $$("[data-sort]", table)) {
    button.addEventListener("click", () => {
      const { sort: key, kind } = button.dataset;
      const header = button.closest("th");
      const was = header.getAttribute("aria-sort");
      const direction = was ? (was === "ascending" ? "descending" : "ascending") : kind === "number" && key !== "p" ? "descending" : "ascending";
      for (const other of $$("th[aria-sort]", table)) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const keyed = rows.map((row) => [row.dataset[key], row]);
      keyed.sort(([x], [y]) => {
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (kind === "number" ? Number(x) - Number(y) : collator.compare(x, y));
      });
      rows = keyed.map(([, row]) => row);
      body.append(...rows);
      apply();
    });
  }

  // Filters and search.
  // Long tables show a part at a time, so that they stay quick; the button, the arrow keys and printing bring the rest.
  const status = $("#shown"), always = status.textContent, more = $("#more"), search = $("#search");
  const filters = $$("[data-filter]");
  const words = new Map(rows.map((row) => [row, $(".name", row).textContent.toLocaleLowerCase()]));
  const STEP = 250;
  let wanted = "all", limit = STEP, matching = rows;
  const visible = () => matching.slice(0, limit);
  const apply = () => {
    const text = search.value.trim().toLocaleLowerCase();
    const fits = ({ verdict, error }) => wanted === "all" || verdict === wanted || error === wanted;
    matching = rows.filter((row) => fits(row.dataset) && words.get(row).includes(text));
    const shown = new Set(visible());
    for (const row of rows) row.hidden = !shown.has(row);
    const found = matching.length < rows.length ? `Showing ${matching.length} of ${rows.length} inputs. ` : "";
    if (status.textContent !== found + always) status.textContent = found + always;
    more.hidden = matching.length <= limit;
    more.textContent = `Show more: ${shown.size} of ${matching.length} are listed`;
    $("#empty").hidden = matching.length > 0;
    if (matching.length && !visible().some((row) => row.tabIndex === 0)) setCurrent(matching[0]);
  };
  const reveal = (count) => {
    if (count <= limit) return;
    limit = Math.ceil(count / STEP) * STEP;
    apply();
  };
  more.addEventListener("click", () => {
    const first = matching[limit];
    reveal(limit + STEP);
    first.focus();
  });
  addEventListener("beforeprint", () => reveal(rows.length));
  for (const button of filters) {
    button.addEventListener("click", () => {
      wanted = button.dataset.filter;
      limit = STEP;
      for (const other of filters) other.setAttribute("aria-pressed", String(other === button));
      apply();
    });
  }
  search.addEventListener("input", () => { limit = STEP; apply(); });

  // One tab stop for the table; arrows move between rows.
  const setCurrent = (row) => {
    for (const other of rows) other.tabIndex = other === row ? 0 : -1;
  };
  body.addEventListener("focusin", (event) => setCurrent(event.target.closest("tr")));
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && "open" in row.dataset && !String(getSelection())) openViewer(row);
  });
  body.addEventListener("keydown", (event) => {
    const list = matching, at = list.indexOf(event.target.closest("tr"));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: list.length - 1, PageDown: at + 8, PageUp: at - 8 }[event.key];
    if (to !== undefined && !event.ctrlKey && !event.altKey && !event.metaKey) {
      event.preventDefault();
      const next = Math.max(0, Math.min(list.length - 1, to));
      reveal(next + 1);
      list[next].focus();
    } else if ((event.key === "Enter" || event.key === " ") && list[at] && "open" in list[at].dataset) {
      event.preventDefault();
      openViewer(list[at]);
    }
  });

  apply();

  // The viewer.
  const viewer = $("#viewer"), stage = $("#stage"), views = $(".v-views", viewer), truth = $("#v-truth");
  const names = { input: "Input", reconstruction: "Reconstruction", map: "Map", overlay: "Overlay", truth: "Truth" };
  const order = ["overlay", "input", "reconstruction", "map", "truth"];
  let current = null, view = "overlay";
  const pictured = () => matching.filter((row) => "open" in row.dataset);
  const picture = (row, name, selector = "img:last-of-type") => $(`[data-view="${name}"] ${selector}`, row);
  const layer = (node, kind) => {
    const copy = node.cloneNode(true);
    copy.removeAttribute("loading");
    copy.setAttribute("class", kind);
    return copy;
  };

  const draw = () => {
    const there = order.filter((name) => picture(current, name));
    if (!there.includes(view)) view = there[0];
    stage.replaceChildren(layer(picture(current, view === "overlay" ? "input" : view), "base"));
    if (view === "overlay") stage.append(layer(picture(current, "overlay"), "heat"));
    const outline = $(".outline", current);
    if (outline && truth && truth.checked && view !== "truth") {
      const copy = layer(outline, "outline");
      copy.removeAttribute("hidden");
      stage.append(copy);
    }
    stage.setAttribute("aria-label", `${names[view]} of ${current.dataset.name}`);
    views.replaceChildren(...there.map((name, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.view = name;
      button.setAttribute("aria-pressed", String(name === view));
      button.append($(`[data-view="${name}"] .thumb`, current).cloneNode(true), document.createElement("span"));
      button.lastChild.textContent = names[name];
      const key = document.createElement("kbd");
      key.textContent = i + 1;
      button.append(key);
      button.addEventListener("click", () => { show(current, name); $(`[data-view="${name}"]`, views).focus(); });
      return button;
    }));
  };

  const show = (row, name = view) => {
    current = row;
    view = name;
    setCurrent(row);
    const list = pictured(), at = list.indexOf(row), data = row.dataset;
    $("#v-name bdi").textContent = data.name;
    const facts = [data.score && `score ${row.querySelector(".score").textContent}`, data.p && `p ${row.querySelector(".p").textContent}`, data.verdict, data.label && `label ${data.label}`, data.error];
    $("#v-facts").textContent = facts.filter(Boolean).join("  ·  ");
    $("#v-facts").dataset.verdict = data.verdict;
    $("#v-place").textContent = `${at + 1} of ${list.length}`;
    $("#v-prev").disabled = at <= 0;
    $("#v-next").disabled = at >= list.length - 1;
    draw();
  };
  const step = (by) => {
    const list = pictured(), row = list[list.indexOf(current) + by];
    if (row) show(row);
  };
  const openViewer = (row) => {
    show(row);
    viewer.showModal();
    stage.focus();
  };

  $("#v-prev").addEventListener("click", () => step(-1));
  $("#v-next").addEventListener("click", () => step(1));
  $("#v-close").addEventListener("click", () => viewer.close());
  if (truth) truth.addEventListener("change", draw);
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => { if (current) { reveal(matching.indexOf(current) + 1); current.focus(); current.scrollIntoView({ block: "nearest" }); } });
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.type === "range") return;
    const there = $$("button", views).map((button) => button.dataset.view);
    const actions = {
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      ArrowUp: () => sliders.length && setOpacity(Number(sliders[0].value) + 5),
      ArrowDown: () => sliders.length && setOpacity(Number(sliders[0].value) - 5),
      t: () => truth && truth.click(),
      T: () => truth && truth.click(),
    };
    const digit = there[Number(event.key) - 1];
    if (!actions[event.key] && !digit) return;
    event.preventDefault();
    if (digit) show(current, digit);
    else actions[event.key]();
  });
})();
