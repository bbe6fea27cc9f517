"""Was a classifier given its images rightly? Clean accuracy under the usual other readings."""
