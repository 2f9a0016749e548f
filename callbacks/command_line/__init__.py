"""The command line: error messages, places in YAML files, experiments that others start from."""
