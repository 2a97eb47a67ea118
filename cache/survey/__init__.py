"""Survey a folder: findings, a table, and a page to decide on it; `findings.inspect` begins."""
