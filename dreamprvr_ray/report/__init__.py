"""The report of a search, written by `python -m dreamprvr_ray.report`: one HTML file that works without a network.

`reader.py` reads the directory of a search into a `SearchRecord`, `importance.py` estimates which parameters matter,
`summary.py` states the results in sentences, `charts/` draws them, and `page.py` puts the page together. Nothing here
imports Ray or changes the search, so a report can be written at any time, also of a search that is still running or was
killed.
"""
