"""Where files are kept: atomic writes, and directories on a disk or in an object store."""
