"""The model being aligned: families, hidden states, token spans, chat templates, freezing."""
