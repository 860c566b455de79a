"""Who may call, and how much: callers, their limits, and the file of their tokens."""
