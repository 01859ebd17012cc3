"""Probes, metrics, statistics and the report. Pure: knows no engine, no Ray and no torch."""
