"""Audits of the same models made where the data lie: what may leave a site, and how the sites are joined."""
