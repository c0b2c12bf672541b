// Shapes, plots and tables out of an answer.
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const path = (rings) => rings.map((ring) => `M${ring.map((value, index) => value + (index % 2 ? " " : ",")).join("")}Z`).join("");

// One focusable shape for each instance; `told` hears which one is pointed at.
export function drawInstances(svg, instances, told) {
  const shapes = [...instances]
    .sort((one, other) => other.area - one.area)
    .map((instance, index) => {
      const made = shape("path", {
        d: path(instance.segmentation),
        class: "instance",
        role: "img",
        "fill-rule": "evenodd",
        tabindex: index === 0 ? 0 : -1,
        "aria-label": `${instance.label} ${instance.id}, score ${instance.score.toFixed(2)}`,
      });
      for (const kind of ["pointerenter", "focus"]) made.addEventListener(kind, () => told(instance));
      return made;
    });
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  shapes.forEach((made, index) =>
    made.addEventListener("keydown", (event) => {
      if (!(event.key in step)) return;
      event.preventDefault();
      const next = shapes[(index + step[event.key] + shapes.length) % shapes.length];
      made.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }),
  );
  svg.append(...shapes);
}

export function drawPatches(svg, refined) {
  for (const place of refined?.patches ?? []) {
    const [row, column] = [Math.floor(place / refined.columns), place % refined.columns];
    svg.append(shape("rect", { x: column * refined.patch, y: row * refined.patch, width: refined.patch, height: refined.patch, class: "patch" }));
  }
}

export function drawSizes(svg, table, measured) {
  const { edges, shares: values } = measured.histogram;
  const [left, bottom, width, height] = [40, 190, 365, 165];
  const most = Math.max(...values, 1e-9);
  const step = width / values.length;
  const bars = values.map((value, index) =>
    shape("rect", { class: "bar", x: left + index * step + 1, width: Math.max(step - 2, 1), y: bottom - (value / most) * height, height: (value / most) * height }),
  );
  const every = Math.ceil(edges.length / 6);
  const ticks = edges
    .map((edge, index) => [edge, index])
    .filter(([, index]) => index % every === 0)
    .map(([edge, index]) => shape("text", { x: left + index * step, y: bottom + 14, "text-anchor": "middle" }, edge.toPrecision(3)));
  const unit = measured.sizes.unit;
  const axis = shape("line", { class: "axis", x1: left, x2: left + width, y1: bottom, y2: bottom });
  const labels = [
    shape("text", { x: left + width / 2, y: 216, "text-anchor": "middle" }, `diameter in ${unit}`),
    shape("text", { x: left - 6, y: 30, "text-anchor": "end" }, `${(100 * most).toFixed(0)} %`),
  ];
  svg.replaceChildren(shape("title", { id: "plot-title" }, `Share of the volume by diameter, ${values.length} classes`), axis, ...bars, ...ticks, ...labels);
  const levels = ["d10", "d50", "d80", "d90"].filter((level) => measured.sizes[level] != null);
  table.tBodies[0].replaceChildren(
    ...levels.map((level) => {
      const row = document.createElement("tr");
      row.insertCell().textContent = level.toUpperCase();
      row.insertCell().textContent = `${measured.sizes[level].toFixed(2)} ${unit}`;
      return row;
    }),
  );
}

export function csvOf(measured) {
  const rows = measured.particles ?? measured.areas ?? [];
  if (!rows.length) return "";
  const names = Object.keys(rows[0]);
  const cell = (value) => (/[",\n]/.test(String(value ?? "")) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
  return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
