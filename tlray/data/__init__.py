"""The data pipeline: lists, audits, splits, decodes, schedules and streams images; also draws synthetic ones."""
