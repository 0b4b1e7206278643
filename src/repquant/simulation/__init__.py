"""Modules that compute in float32 what a runtime computes in integers."""
