"""One thin file per command: compose the config, call the library, write summary.json."""
