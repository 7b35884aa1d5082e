"""Options, and the values that they take."""
