"""Evaluation: metrics, baselines, statistics, protocols and the report."""
