"""Programs that write parts of the documentation; run them with `make docs`."""
