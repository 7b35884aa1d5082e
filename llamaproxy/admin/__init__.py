"""What an operator sees: listeners of events, and the second port."""
