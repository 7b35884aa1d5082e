"""The memory of turns that machines share, in Redis or Valkey."""
