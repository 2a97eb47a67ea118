"""The page about a run, `report`, and its pictures, `figures`."""
