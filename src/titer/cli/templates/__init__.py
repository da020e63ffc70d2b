"""What `titer new` writes: a working file for each kind, whose names it replaces."""
