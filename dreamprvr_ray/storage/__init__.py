"""Files and directories: atomic writes, JSON, and directories on a disk or in an object store."""
