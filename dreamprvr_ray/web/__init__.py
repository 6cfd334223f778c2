"""The web application of `serve`: a page and an API over an index and its videos. Knows nothing of Ray."""
