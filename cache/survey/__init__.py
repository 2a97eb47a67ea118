"""Survey a folder: findings for every image, a table, and a page to decide on it. `findings.inspect` is the
door.
"""
