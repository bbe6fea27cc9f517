"""The gate: results against a policy, as an exit status, JUnit XML and Markdown."""
