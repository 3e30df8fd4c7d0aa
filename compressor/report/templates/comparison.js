// Filters the table and the chart, and draws the Pareto fronts of what is shown.
{
  const form = document.getElementById("filters");
  const rows = [...document.querySelectorAll("tbody[data-run]")];
  const charts = [...document.querySelectorAll("svg.scatter")];

  const isWanted = () => {
    const checked = ["run", "place", "precision"].map((name) => [
      name,
      new Set([...form.querySelectorAll(`input[name=${name}]:checked`)].map((each) => each.value)),
    ]);
    const part = form.elements.variant.value.trim().toLowerCase();
    return (row) =>
      checked.every(([name, values]) => values.has(row.dataset[name])) &&
      row.dataset.variant.toLowerCase().includes(part) &&
      (!form.elements.shipped.checked || row.classList.contains("chosen"));
  };

  // Nothing is both faster and more accurate; equal rows are both on it. Fastest first.
  const paretoFront = (points) => {
    const front = [];
    points.sort((a, b) => a.latency - b.latency || b.accuracy - a.accuracy);
    for (const each of points) {
      const last = front.at(-1);
      const isEqual = last && last.latency === each.latency && last.accuracy === each.accuracy;
      if (!last || each.accuracy > last.accuracy || isEqual) front.push(each);
    }
    return front;
  };

  const draw = (chart, shown) => {
    for (const each of chart.querySelectorAll("[data-row]")) {
      each.toggleAttribute("hidden", !shown.has(each.dataset.row));
    }
    const points = [...chart.querySelectorAll(".point")]
      .filter((each) => shown.has(each.dataset.row))
      .map(({ dataset }) => {
        const row = shown.get(dataset.row).dataset;
        return { ...dataset, name: row.name, latency: +row.latency, accuracy: +row.accuracy };
      });
    const said = [`Scatter chart of accuracy against latency for ${points.length} rows.`];
    for (const path of chart.querySelectorAll(".front")) {
      const front = paretoFront(points.filter((each) => each.on === path.dataset.front));
      const steps = front.map((each, i) => (i ? `H${each.x}V${each.y}` : `M${each.x} ${each.y}`));
      path.setAttribute("d", steps.join(""));
      const names = front.map((each) => each.name).join("; ");
      if (names) said.push(`${path.dataset.title}, fastest first: ${names}.`);
    }
    chart.setAttribute("aria-label", said.join(" "));
  };

  const show = (isShown) => {
    const shown = new Map();
    for (const row of rows) {
      row.hidden = !isShown(row);
      if (!row.hidden) shown.set(row.dataset.number, row);
    }
    for (const chart of charts) draw(chart, shown);
    document.getElementById("shown").textContent = `${shown.size} of ${rows.length} rows shown`;
  };

  if (form) {
    const filter = () => show(isWanted());
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    // The values change after the event.
    form.addEventListener("reset", () => setTimeout(filter));
    // Paper has no filters.
    addEventListener("beforeprint", () => show(() => true));
    addEventListener("afterprint", filter);
  }
}
