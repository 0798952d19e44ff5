"""Tests of tga/vlm."""
