"""The Lightning module, callbacks and the contents of a checkpoint."""
