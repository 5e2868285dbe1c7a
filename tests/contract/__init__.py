"""What every broker promises (`worker.brokers.contract`), tried on each of them alike."""
