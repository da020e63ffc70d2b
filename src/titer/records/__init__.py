"""Records: what happened, on disk. No torch here."""
