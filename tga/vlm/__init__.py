"""The model being aligned: where its parts are, its token spans, its templates, its hidden states."""
