"""Read runs from disk, group and compare them; `report/` presents them, `reproduce/` fills the papers' tables."""
