"""The charts of the report, as plotly figures. The sections decide whether there is enough data for a chart."""
