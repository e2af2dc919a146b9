"""Reports: tables, figures and pages from the rows on disk."""
