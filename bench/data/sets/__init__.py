"""The datasets that are known by name, one file each: a new file here needs no registration elsewhere."""
