"""Everything that uses Ray except Ray Tune."""
