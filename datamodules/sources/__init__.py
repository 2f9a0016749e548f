"""Where rows come from: embedded data, local files, the hub."""
