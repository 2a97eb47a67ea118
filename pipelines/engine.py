"""Placeholder until the merge."""

from greyhound.pipelines.loader import Resources as Resources
