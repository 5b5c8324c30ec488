"""Storm cells of a forecast: followed from lead to lead, and written as GeoJSON.

In: forecasts, what is a storm cell. Out: features with outline, number, speed and lead.
May import: `config`, `datasets`, `errors`, `verification`.
"""
