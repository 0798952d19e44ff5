"""The embedded mini world: emoji scenes, a small safety-aligned LLM and a small CLIP.

A data and model source like any other: `world.prepare` writes ordinary files (LLaVA JSON, an LLM directory, an
open_clip directory, question files), and everything else in `tga` reads those files as it would read real ones.
"""
