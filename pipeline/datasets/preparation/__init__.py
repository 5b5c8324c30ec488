"""Preparation of observations for models: splits of init times, climatology and quality.

In: observations and the section `prepare`. Out: tables and fields of `data/prepared/`.
May import: `errors`, `config`, `datasets`.
"""
