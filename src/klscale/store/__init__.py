"""The store: Parquet and JSON files that outlive a process. No torch."""
