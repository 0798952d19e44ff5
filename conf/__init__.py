"""The Hydra configs, installed as `tga.conf` (`pkg://tga.conf`). Sub-folders are groups, not packages."""
