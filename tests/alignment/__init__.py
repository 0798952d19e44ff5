"""Tests of tga/alignment."""
