"""How the LLM and the CLIP of the mini world are made; run by `python -m tools.make_mini_world`."""
