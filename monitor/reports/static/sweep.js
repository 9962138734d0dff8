// The figures of a sweep, drawn by plotly.js; a click shows the chains of a point.
for (const [id, figure] of Object.entries(data.figures)) {
  const plot = document.getElementById(id);
  Plotly.newPlot(plot, figure.data, figure.layout, { responsive: true, displaylogo: false });
  plot.on("plotly_click", (event) => showChains(event.points[0].customdata));
}
