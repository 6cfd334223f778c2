"""An encoded collection on disk, and finding the moments of sentences in it (docs/search.md). Imports no Ray."""
