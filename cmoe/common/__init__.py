"""Files, storage, processes and command lines: what every other part stands on."""
