"""The views of the record: tables, plots, the report's page.

It uses `data` and `evaluate`, for the pictures on the page.
"""
