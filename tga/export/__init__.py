"""A trained checkpoint as a Hugging Face directory or a LLaVA projector, and back."""
