"""The embedded world: glyph scenes, a small LLM, a small CLIP."""
