"""The command line: error messages, places in YAML files, preceding experiments."""
