"""Encoders, caption store and FAISS index of a caption corpus."""
