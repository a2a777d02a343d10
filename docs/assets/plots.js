// Draws the plots of plots.md in the colours of the page, anew where it turns dark or light.
const COLOURS = ["#4482c7", "#d9534f", "#3a9150", "#a3811f", "#2b93a8", "#b65aa5", "#c9682c", "#5f8f2f", "#8673c9", "#8a7a66"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
document$.subscribe(() => {
  const plots = document.querySelectorAll(".plot");
  if (!plots.length) return;
  const draw = () => {
    const ink = getComputedStyle(document.querySelector("article")).color, line = "rgba(128, 128, 128, 0.3)";
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    for (const plot of plots) {
      const points = JSON.parse(plot.querySelector("script").textContent);
      const ground = plot.querySelector(".drawn") || plot.appendChild(Object.assign(document.createElement("div"), { className: "drawn" }));
      Plotly.react(ground, points.map((point, index) => ({
        type: "scatter", mode: "markers", name: point.name, x: [point.x], y: [point.y], cliponaxis: false,
        error_x: { array: [point.dx], color: line }, error_y: { array: [point.dy], color: line },
        marker: { size: 11, color: COLOURS[index % COLOURS.length], symbol: SYMBOLS[index % SYMBOLS.length] },
        hovertemplate: `${point.name}: Recall@20 %{y:.4f}, %{x:.2f} % of the lists (seeds: ${point.seeds})<extra></extra>`,
      })), {
        xaxis: { ...axis, rangemode: "tozero" }, yaxis: { ...axis, title: { text: "Recall@20" } },
        margin: { l: 60, r: 24, t: 16, b: 32 }, height: 500, font: { color: ink }, hovermode: "closest",
        legend: { orientation: "h", y: -0.12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      }, { responsive: true, displaylogo: false });
    }
  };
  draw();
  new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
});
