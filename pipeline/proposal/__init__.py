"""Proposals for a new project: what an archive holds, the settings that suit it, and the project's files.

In: a file, folder, glob or URL. Out: `params.yaml`, `dvc.yaml` and what git and DVC need.
May import: `errors`, `config`, `datasets`, `sources`, `models`.
"""
