"""Files of rows: one reader a format, all behind the one rule of what a row may be."""
