"""The models that are served, and all that lives and dies with one."""
