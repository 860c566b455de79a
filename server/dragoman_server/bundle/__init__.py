"""The model bundle: its format, and opening one."""
