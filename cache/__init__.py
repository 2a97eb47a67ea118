"""Photographs in, one resident pack out: survey every file once, pack the originals, map them into memory."""
