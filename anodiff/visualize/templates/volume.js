(() => {
  "use strict";
  const viewer = $("#viewer");
  if (!viewer) return;
  const bytes = (hex) => Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
  const colours = bytes(viewer.dataset.colours), opacities = bytes(viewer.dataset.opacities);
  const scale = viewer.dataset.scale ? JSON.parse(viewer.dataset.scale) : null;
  const rows = $$("#table .row").filter((row) => "meta" in row.dataset);
  const opacity = $("#v-opacity"), truth = $("#v-truth"), cross = $("#v-cross");

  // Axes of the volume: across and down the screen, and through it. Letters: what lies at the screen's left, right, top, bottom.
  const PLANES = {
    axial: { across: 0, down: 1, through: 2, name: "Axial", letters: "RLAP" },
    coronal: { across: 0, down: 2, through: 1, name: "Coronal", letters: "RLSI" },
    sagittal: { across: 1, down: 2, through: 0, name: "Sagittal", letters: "APSI" },
  };
  let meta = null, sheets = {}, at = [0, 0, 0], base = "image", current = null, opening = 0;

  // A sheet: one picture of all axial slices -> the volume, i fastest.
  const decode = async (image, { shape: [I, J, K], factors, columns }) => {
    const picture = new Image();
    picture.src = image.src;
    await picture.decode();
    const canvas = document.createElement("canvas");
    canvas.width = columns * I;
    canvas.height = Math.ceil(K / columns) * J;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const voxels = new Uint8Array(I * J * K);
    for (let line = 0; line * columns < K; line++) {
      const rgba = context.getImageData(0, line * J, canvas.width, J).data;
      for (let k = line * columns; k < Math.min(K, (line + 1) * columns); k++) {
        const left = (k - line * columns) * I;
        for (let j = 0; j < J; j++) for (let i = 0; i < I; i++) voxels[(k * J + j) * I + i] = rgba[4 * (j * canvas.width + left + i)];
      }
    }
    return { voxels, shape: [I, J, K], factors, steps: [1, I, I * J] };
  };

  // Stored voxel n of the image along an axis <-> voxel of the given volume <-> stored voxel of another sheet.
  const centre = (n, axis) => Math.min(n * sheets.image.factors[axis] + ((sheets.image.factors[axis] - 1) >> 1), meta.shape[axis] - 1);
  const within = (sheet, voxel, axis) => Math.min(Math.floor(voxel / sheet.factors[axis]), sheet.shape[axis] - 1);
  const places = (sheet, axis, flip) => {
    const count = sheets.image.shape[axis];
    return Int32Array.from({ length: count }, (_, n) => within(sheet, centre(flip ? count - 1 - n : n, axis), axis) * sheet.steps[axis]);
  };
  const value = (sheet, voxel) => sheet.voxels[voxel.reduce((sum, place, axis) => sum + within(sheet, place, axis) * sheet.steps[axis], 0)];

  const drawVoxels = (plane, canvas) => {
    const { across, down, through } = PLANES[plane], flip = meta.oriented;
    const width = sheets.image.shape[across], height = sheets.image.shape[down];
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d"), picture = context.createImageData(width, height), out = picture.data;
    const shown = sheets[base], heat = base !== "map" && sheets.map, strength = heat ? opacity.value / 100 : 0;
    const layer = (sheet) => ({
      voxels: sheet.voxels, x: places(sheet, across, flip), y: places(sheet, down, flip),
      z: within(sheet, at[through], through) * sheet.steps[through],
    });
    const under = layer(shown), over = heat ? layer(heat) : null;
    for (let y = 0, n = 0; y < height; y++) {
      for (let x = 0; x < width; x++, n += 4) {
        const grey = under.voxels[under.z + under.y[y] + under.x[x]];
        let red = grey, green = grey, blue = grey;
        if (base === "map") [red, green, blue] = [colours[3 * grey], colours[3 * grey + 1], colours[3 * grey + 2]];
        if (over) {
          const hot = over.voxels[over.z + over.y[y] + over.x[x]], cover = (strength * opacities[hot]) / 255;
          red += cover * (colours[3 * hot] - red);
          green += cover * (colours[3 * hot + 1] - green);
          blue += cover * (colours[3 * hot + 2] - blue);
        }
        out[n] = red; out[n + 1] = green; out[n + 2] = blue; out[n + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  };

  // Outline and crosshair at the screen's own resolution.
  const drawMarks = (plane, canvas) => {
    const { across, down, through } = PLANES[plane], flip = meta.oriented, density = devicePixelRatio || 1;
    const width = (canvas.width = Math.round(canvas.clientWidth * density));
    const height = (canvas.height = Math.round(canvas.clientHeight * density));
    const context = canvas.getContext("2d");
    const side = (axis) => meta.shape[axis];
    const onScreen = (voxel, axis, length) => ((flip ? side(axis) - voxel : voxel) / side(axis)) * length;
    if (sheets.mask && truth.checked) {
      const mask = sheets.mask, [fx, fy] = [mask.factors[across], mask.factors[down]];
      const z = within(mask, at[through], through) * mask.steps[through];
      const inside = (x, y) => x >= 0 && y >= 0 && x < mask.shape[across] && y < mask.shape[down] && mask.voxels[z + x * mask.steps[across] + y * mask.steps[down]] > 127;
      const X = (x) => onScreen(Math.min(x * fx, side(across)), across, width), Y = (y) => onScreen(Math.min(y * fy, side(down)), down, height);
      context.strokeStyle = "#40e0d0";
      context.lineWidth = 1.6 * density;
      context.beginPath();
      for (let y = 0; y <= mask.shape[down]; y++) {
        for (let x = 0; x <= mask.shape[across]; x++) {
          const here = inside(x, y);
          if (here !== inside(x - 1, y)) { context.moveTo(X(x), Y(y)); context.lineTo(X(x), Y(y + 1)); }
          if (here !== inside(x, y - 1)) { context.moveTo(X(x), Y(y)); context.lineTo(X(x + 1), Y(y)); }
        }
      }
      context.stroke();
    }
    if (cross.checked) {
      const x = onScreen(at[across] + 0.5, across, width), y = onScreen(at[down] + 0.5, down, height), gap = 9 * density;
      context.strokeStyle = "rgb(255 255 255 / .6)";
      context.lineWidth = density;
      context.beginPath();
      for (const [a, b, c, d] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
        context.moveTo(a, b);
        context.lineTo(c, d);
      }
      context.stroke();
    }
  };

  const apply = (matrix, [i, j, k]) => matrix.slice(0, 3).map((row) => row[0] * i + row[1] * j + row[2] * k + row[3]);
  // Never "-0.0".
  const tenth = (number) => (Math.round(number * 10) / 10 || 0).toFixed(1);
  const short = (number) => Number(number.toPrecision(3)).toString();
  const mapText = () => {
    if (!sheets.map || !scale) return "";
    const hot = value(sheets.map, at), [low, middle, high] = scale;
    const about = hot < 128 ? low + ((hot + 0.5) / 128) * (middle - low) : middle + ((hot - 127.5) / 128) * (high - middle);
    const text = hot === 255 ? `${short(high)} or more` : hot === 0 ? `${short(low)} or less` : `about ${short(about)}`;
    return `  ·  map ${text}${viewer.dataset.calibrated ? (hot > 127 ? ", above the voxel threshold" : ", below the voxel threshold") : ""}`;
  };

  const draw = () => {
    for (const figure of $$(".plane", viewer)) {
      const plane = figure.dataset.plane, { through } = PLANES[plane], slider = $("input", figure);
      drawVoxels(plane, $(".voxels", figure));
      drawMarks(plane, $(".marks", figure));
      slider.value = within(sheets.image, at[through], through);
      const world = apply(meta.affine, at)[through];
      const text = `${at[through] + 1} of ${meta.shape[through]}` + (meta.oriented ? `, ${tenth(world)} mm` : "");
      $("output", figure).textContent = text;
      slider.setAttribute("aria-valuetext", `slice ${text}`);
    }
    const voxel = apply(meta.stored, at).map((place) => Math.round(place)), world = apply(meta.affine, at).map(tenth);
    $("#v-readout").textContent = `voxel (${voxel.join(", ")}) of the file` + (meta.oriented ? `  ·  (${world.join(", ")}) mm, right front up` : "") + mapText();
  };
  let waiting = false;
  const redraw = () => {
    if (waiting || !meta) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
  const moveTo = (voxel) => {
    at = voxel.map((place, axis) => Math.max(0, Math.min(meta.shape[axis] - 1, Math.round(place))));
    redraw();
  };
  const step = (axis, by) => {
    const next = within(sheets.image, at[axis], axis) + by;
    moveTo(at.map((place, other) => (other === axis ? centre(Math.max(0, Math.min(sheets.image.shape[axis] - 1, next)), axis) : place)));
  };

  for (const figure of $$(".plane", viewer)) {
    const plane = PLANES[figure.dataset.plane], pane = $(".pane", figure), slider = $("input", figure);
    const point = (event) => {
      const box = pane.getBoundingClientRect(), voxel = [...at];
      const along = (share, axis) => Math.floor((meta.oriented ? 1 - share : share) * meta.shape[axis]);
      voxel[plane.across] = along((event.clientX - box.left) / box.width, plane.across);
      voxel[plane.down] = along((event.clientY - box.top) / box.height, plane.down);
      moveTo(voxel);
    };
    pane.addEventListener("pointerdown", (event) => {
      if (!meta || event.button) return;
      pane.setPointerCapture(event.pointerId);
      point(event);
    });
    pane.addEventListener("pointermove", (event) => { if (meta && event.buttons & 1) point(event); });
    pane.addEventListener("wheel", (event) => {
      if (!meta || event.ctrlKey) return;
      event.preventDefault();
      step(plane.through, event.deltaY > 0 ? -1 : 1);
    }, { passive: false });
    pane.addEventListener("keydown", (event) => {
      if (!meta || event.ctrlKey || event.altKey || event.metaKey) return;
      const onward = meta.oriented ? -1 : 1;
      const moves = {
        ArrowLeft: [plane.across, -onward], ArrowRight: [plane.across, onward], ArrowUp: [plane.down, -onward],
        ArrowDown: [plane.down, onward], PageUp: [plane.through, 1], PageDown: [plane.through, -1],
      };
      if (!moves[event.key]) return;
      event.preventDefault();
      step(...moves[event.key]);
    });
    slider.addEventListener("input", () => moveTo(at.map((place, axis) => (axis === plane.through ? centre(Number(slider.value), axis) : place))));
  }

  const setUp = () => {
    for (const figure of $$(".plane", viewer)) {
      const plane = PLANES[figure.dataset.plane], { across, down, through } = plane, pane = $(".pane", figure);
      const length = (axis) => meta.shape[axis] * meta.spacing[axis];
      // Widths in proportion to millimetres: the three pictures have one scale.
      figure.style.setProperty("flex-grow", length(across));
      pane.style.setProperty("aspect-ratio", `${length(across)} / ${length(down)}`);
      const name = meta.oriented ? plane.name : `Slices along ${"ijk"[through]}`;
      $(".plane-name", figure).textContent = name;
      $(".slice .sr", figure).textContent = `${name}: slice`;
      pane.setAttribute("aria-label", `${name}: arrow keys move the crosshair, page keys the slice`);
      $$(".edge", figure).forEach((edge, n) => { edge.textContent = meta.oriented ? plane.letters[n] : ""; });
      $("input", figure).max = sheets.image.shape[through] - 1;
    }
    $("#v-lesions").replaceChildren(...meta.lesions.map(({ at: voxel, text }, n) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${n + 1}: ${text}`;
      button.addEventListener("click", () => moveTo(voxel));
      return button;
    }));
    $("#v-unlisted").hidden = !meta.unlisted;
    $("#v-unlisted").textContent = `The ${meta.lesions.length} candidates with the highest peaks; ${meta.unlisted} more are not listed here.`;
    for (const button of $$("#v-bases button")) button.hidden = !sheets[button.dataset.base];
    if (!sheets[base]) setBase("image");
    const millimetres = (sheet) => sheet.factors.map((factor, axis) => Number((factor * meta.spacing[axis]).toFixed(2))).join(" × ");
    const native = meta.spacing.map((mm) => Number(mm.toFixed(2))).join(" × ");
    const shrunk = Object.entries(sheets).filter(([, sheet]) => sheet.factors.some((factor) => factor > 1));
    $("#v-grid").textContent = `${meta.shape.join(" × ")} voxels of ${native} mm.` + shrunk.map(([kind, sheet]) => ` The ${kind} is shown in voxels of ${millimetres(sheet)} mm${kind === "map" ? ", the largest value of each" : ""}.`).join("") + (meta.oriented ? " The patient's right is at the left of the picture." : "");
  };

  const open = async (row) => {
    const turn = ++opening, wanted = JSON.parse(row.dataset.meta);
    let decoded;
    try {
      const pairs = $$(".sheet", row).map(async (image) => [image.dataset.kind, await decode(image, wanted.sheets[image.dataset.kind])]);
      decoded = Object.fromEntries(await Promise.all(pairs));
    } catch {
      if (turn === opening) $("#v-failed").hidden = false;
      return;
    }
    if (turn !== opening) return;
    [meta, sheets, current] = [wanted, decoded, row];
    $("#v-failed").hidden = true;
    viewer.hidden = false;
    const { name, score, p, verdict, label } = row.dataset;
    $("#v-name bdi").textContent = name;
    $("#v-facts").textContent = [score && `score ${score}`, p && `p ${p}`, verdict, label && `label ${label}`].filter(Boolean).join("  ·  ");
    const place = rows.indexOf(row);
    if ($("#v-place")) {
      $("#v-place").textContent = `${place + 1} of ${rows.length}`;
      $("#v-prev").disabled = place <= 0;
      $("#v-next").disabled = place >= rows.length - 1;
    }
    for (const other of rows) other.classList.toggle("shown", other === row);
    setUp();
    moveTo(meta.start);
    viewer.dataset.ready = name;
  };

  const setBase = (name) => {
    base = name;
    for (const button of $$("#v-bases button")) button.setAttribute("aria-pressed", String(button.dataset.base === name));
    redraw();
  };
  for (const button of $$("#v-bases button")) button.addEventListener("click", () => setBase(button.dataset.base));
  let before = 75;
  const setOpacity = (percent) => {
    opacity.value = percent;
    opacity.nextElementSibling.textContent = `${opacity.value} %`;
    redraw();
  };
  if (opacity) opacity.addEventListener("input", () => setOpacity(opacity.value));
  for (const box of [truth, cross]) if (box) box.addEventListener("change", redraw);
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase();
    if (key === "t" && truth) truth.click();
    else if (key === "c") cross.click();
    else if (key === "m" && opacity) {
      if (Number(opacity.value)) { before = opacity.value; setOpacity(0); } else setOpacity(before);
    } else return;
    event.preventDefault();
  });
  addEventListener("resize", redraw);

  for (const row of rows) {
    const show = () => { open(row); viewer.scrollIntoView({ block: "nearest" }); };
    row.addEventListener("click", (event) => { if (!event.target.closest("button") && !String(getSelection())) show(); });
    const button = $(".open", row);
    if (button) button.addEventListener("click", show);
  }
  if ($("#v-prev")) {
    $("#v-prev").addEventListener("click", () => open(rows[rows.indexOf(current) - 1]));
    $("#v-next").addEventListener("click", () => open(rows[rows.indexOf(current) + 1]));
  }
  if (rows.length) open(rows[0]);
})();
