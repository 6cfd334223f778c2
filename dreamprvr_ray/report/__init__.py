"""The report of a search: one HTML file that needs no network. `python -m dreamprvr_ray.report EXPERIMENT` makes it.

`experiment.py` reads what a search left on disk, `importance.py` asks what mattered, `pictures.py` and `final_pictures.py` draw, `page.py` writes
it all down.
Nothing here imports Ray or changes the search: a report may be made at any time, of a running or a killed search too.
"""
