"""Lists of events: which inputs fired, grouped by when."""
