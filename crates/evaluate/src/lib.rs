//! Metrics of quality and diversity, logs and reports.
