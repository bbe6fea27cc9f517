"""The gate: results against a policy, as an exit status, JUnit XML, Markdown, JSON and tests of pytest."""
