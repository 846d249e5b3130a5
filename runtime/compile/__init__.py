"""`runtime compile`: whether a topology's programs compile for a TPU, and fit, before anybody owns one."""
