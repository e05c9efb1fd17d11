"""De-identification by PS3.15 Annex E: what is removed, replaced or kept of a data set, and when a person must look."""
