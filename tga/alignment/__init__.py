"""Training objectives that bring image tokens close to the text of the same meaning."""
