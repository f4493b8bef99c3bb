"""The command line of BoundGraph: `boundgraph.cli.main` and one module per command."""
