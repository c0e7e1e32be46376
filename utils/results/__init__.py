"""Where a figure stands once it is measured: the record, and its views: tables, plots, the report's page.

It uses `data` and `evaluate`, for the pictures on the page.
"""
