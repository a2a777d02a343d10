// Draws the plots of plots.md in the colours of the page, anew where it turns dark or light.
document$.subscribe(() => {
  const plots = document.querySelectorAll(".plot");
  if (!plots.length) return;
  const draw = () => {
    const style = getComputedStyle(document.querySelector("article"));
    const ink = style.color, line = "rgba(128, 128, 128, 0.3)", accent = style.getPropertyValue("--md-typeset-a-color");
    for (const plot of plots) {
      const { points, x } = JSON.parse(plot.querySelector("script").textContent);
      const column = (key) => points.map((point) => point[key]);
      const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
      Plotly.react(plot.querySelector(".drawn") || plot.appendChild(Object.assign(document.createElement("div"), { className: "drawn" })), [{
        type: "scatter", mode: "markers+text", x: column("x"), y: column("y"), text: column("name"), textposition: "top center",
        error_x: { array: column("dx"), color: line }, error_y: { array: column("dy"), color: line },
        customdata: column("seeds"), marker: { size: 10, color: accent }, cliponaxis: false,
        hovertemplate: "%{text}: Recall@20 %{y:.4f}, %{x:.2f} % of the lists (seeds: %{customdata})<extra></extra>",
      }], {
        xaxis: { ...axis, title: { text: x }, rangemode: "tozero" }, yaxis: { ...axis, title: { text: "Recall@20" } },
        margin: { l: 60, r: 24, t: 16, b: 48 }, height: 420, font: { color: ink }, hovermode: "closest", showlegend: false,
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      }, { responsive: true, displaylogo: false });
    }
  };
  draw();
  new MutationObserver(draw).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
});
