"""Fast execution paths that compute what the modules of `model` specify."""
