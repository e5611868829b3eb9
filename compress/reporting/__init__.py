"""What a benchmark found, drawn and told.

In: results.json. Out: tables, Markdown, PNG plots, one self-contained HTML page.
"""
