"""Is the machine running? A classifier made of a handful of example pictures."""
