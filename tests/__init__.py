"""The tests mirror the packages path for path: tests/export/test_hf.py tests tga/export/hf.py."""
