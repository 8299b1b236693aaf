"""Tasks that ship with the strategies: how a problem is cut into thoughts, and an exact check of its answer."""
