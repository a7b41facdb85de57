"""Arrays in, arrays out: no task, no files, no plots."""
