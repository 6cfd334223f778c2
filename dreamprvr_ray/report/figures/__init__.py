"""The paper's figures of a checkpoint: their data, each in a file, and the page. `report.charts` draws them."""
