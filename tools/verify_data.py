"""tga-verify-data from a checkout: `python -m tools.verify_data data.json=PATH data.image_root=PATH out=bad.jsonl`."""

from __future__ import annotations

from tga.cli.verify_data import main

if __name__ == "__main__":
    main()
