"""What a run found: as data, Markdown, one HTML page, and a table in the terminal."""
