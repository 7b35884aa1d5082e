"""Where tools come from and how they run."""
