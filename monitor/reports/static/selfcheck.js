// The figure of the self-check, drawn by plotly.js.
Plotly.newPlot("plot", data.data, data.layout, { responsive: true, displaylogo: false });
