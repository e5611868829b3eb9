"""The command line. In: what a person types. Out: files, tables and one line per mistake; nothing heavy is imported for --help."""
