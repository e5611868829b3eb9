"""The command line; nothing heavy is imported for --help.

In: what a person types. Out: files, tables and one line per mistake.
"""
