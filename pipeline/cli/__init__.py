"""The `fieldcast` command.

In: arguments of the command line. Out: calls of the other packages, text, exit codes.
May import: `errors`, `config`, `datasets`, `sources`, `proposal`, `forecasting`, `verification`, `tracking`,
`evaluation`, `training`, `report`, `explain`, `storms`, `live`, `provenance`, `api`, `models`.
"""
