"""Batches in, a trained, averaged, evaluated and explained network out; knows neither pack nor pipelines."""
