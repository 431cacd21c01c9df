"""Workflows: functions of a participant whose steps are stored, and which are resumed until they end."""
