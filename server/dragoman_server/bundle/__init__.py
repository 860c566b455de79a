"""The model bundle: its format, opening one, and the replay of its parity certificate."""
